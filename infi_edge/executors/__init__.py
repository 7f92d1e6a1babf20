"""Where a model runs that is not in this process: on a server (offload), or half of it there."""
