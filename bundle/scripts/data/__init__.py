"""Reading published data sets, the datalist and phantoms. Docstring only: code goes into the modules beside it."""
