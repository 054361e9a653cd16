"""Studies that chose the recipe and the makers of ``examples/``. They import the package, which never imports them."""
