"""ImageNet: JPEG files to batches to a network trained on all ranks, in one command.

    files | shard | decode | pack | collate | queue -> training

    python -m qflow.train.imagenet -w 2 -s 20
    python -m torch.distributed.run --standalone --nproc-per-node 2 -m qflow.train.imagenet -w 2

Without ``--base-dir`` or ``--file-list-path`` it trains on JPEG tiles of pictures that scikit-image brings along. Nothing is
downloaded.

    tiles    real JPEGs to try it with             ranks      which process of how many, and what they tell each other
    files    paths and labels, a data set          training   steps, epochs, and what is printed
    flow     decode, collate, and the flow         rates      images a second
    model    the network, and how it learns        trace      torch's profiler, with qflow's steps
    command  options
"""
