"""fastnorm behind the names and conventions of other code. Nothing here is imported by itself."""
