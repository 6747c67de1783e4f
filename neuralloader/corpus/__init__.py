"""Original videos: find and label them, read them in processes of their own, cache their frames for training.

The only room that knows a video decoder, and only inside the reader process (``worker.py``): nothing here imports
decord in the process of the caller. Reading order: ``find``, ``selection``, ``promise``, ``read``, ``worker``,
``pool``, ``cache``; beside them ``mjpeg`` writes small videos and ``synthetic`` makes a whole corpus of them.
"""
