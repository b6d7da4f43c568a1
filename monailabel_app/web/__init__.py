"""The app over HTTP: addresses, and what every request is checked for."""
