"""Original videos: find and label them, read them in processes of their own, cache their frames for training.

The only room that knows video libraries. Packing uses decord alone, and only inside the reader process
(``worker.py``): nothing of it imports decord in the process of the caller. Reading order: ``find``, ``selection``,
``promise``, ``read``, ``worker``, ``pool``, ``cache``; beside them ``mjpeg`` writes small videos and ``synthetic``
makes a whole corpus of them.

For ``neuralloader bench`` there are ``clip_readers``, ``pyav_reader``, ``clip_files`` and ``rivals``: clips read from
the original videos, and from the same frames kept in other ways. They use the libraries in the process that asks.
"""
