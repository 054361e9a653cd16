"""Models as files: what there is, fetching, checking, and carrying to machines without a network.

Two kinds of folder lie in the cache (``VIRNUCPRO_CACHE``), each with a ``receipt.json``::

    bundles/<name>/      a bundle, ready to run
    downloads/<part>/    a released checkpoint as its authors published it

Importing these modules imports no torch.
"""
