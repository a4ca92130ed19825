import sr_bigbatch  # noqa: F401  (mends the hosts before any test, or a process of one, imports them)
