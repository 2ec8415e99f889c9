collect_ignore_glob = ["*"]  # they are imported by the examples, with the environment that these need
