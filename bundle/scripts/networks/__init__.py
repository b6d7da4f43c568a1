"""The networks of the cascade. Only modules with parameters go here: no losses, no training, no file access."""
