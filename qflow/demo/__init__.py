"""Demo: the main job, from real pictures and digits to a trained classifier, in one command.

    pictures -> events -> folder of HDF5 files -> chunks | read | transform | repack | collate | queue -> training

The task: name the digit that is written over a picture. The digits (scikit-learn) and the pictures
(scikit-image, scikit-learn) are real; events are tiled from them, as many as asked for, and no digit
and no picture stands on both sides of the split.

    bytesizes   sizes as text                      steps     transform and collate, and the flow
    split       what is to train on                model     the network, training, accuracy
    pictures    the real digits and pictures       memory    peak memory of a tree of processes
    events      digits written over tiles          cap       a limit on that memory
    folder      which HDF5 files there are         job       all of it
    writing     the step that makes them           report    what is printed
    command     options
"""
