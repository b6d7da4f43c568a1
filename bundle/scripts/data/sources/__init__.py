"""One module per layout of files that is read, and the table of them."""
