"""Bench: qflow beside whatever peers are installed, ``python -m qflow.bench``.

Without a command it measures their throughput. ``faults`` breaks the same thing in each of them and sees what
the consumer gets; ``payloads`` sends the same values through each of them and sees what comes out; ``cost`` says
what a message takes of the CPU.
"""
