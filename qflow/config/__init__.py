"""Config: flows over tables written in YAML, and ``qflow h5 run``, which runs them.

    flow:
      source: hits                        # a table of the input, or an entry that makes one
      stages: [calibrate, cluster]        # entries, in order
      drop: [scratch]                     # tables that are only wanted meanwhile

    calibrate:
      function: detector:calibrate        # module:function
      params: {gain: 2.0}
      requires: {tracks: hits -> tracks, numbers: [hits -> tracks, index]}
      append: {table: calib, refs: "1:1"}

    cluster: !include cluster.yaml

    resources:
      geometry: {function: detector:geometry, params: {path: geometry.h5}}

What is written here means what `qflow.h5` says of the same words; see `entries`.
"""
