"""What a data set becomes before training: cases, their checks, the datalist and the split."""
