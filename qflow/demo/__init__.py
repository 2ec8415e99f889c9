"""Demo: the main job, from real pictures and digits to a trained classifier, in one command.

    pictures -> events -> folder of HDF5 files -> chunks | read | transform | repack | collate | queue -> training

The task: name the digit that is written over a picture. The digits (scikit-learn) and the pictures
(scikit-image, scikit-learn) are real; events are tiled from them, as many as asked for, and no digit
and no picture stands on both sides of the split.

    split       what is to train on                steps     transform and collate, and the flow
    pictures    the real digits and pictures       model     the network, training, accuracy
    events      digits written over tiles          memory    peak memory of a tree of processes
    folder      which HDF5 files there are         cap       a limit on that memory
    writing     the step that makes them           job       all of it
    command     options                            report    what is printed
"""
