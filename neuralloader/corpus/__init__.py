"""Original videos: find and label them, read them in processes of their own, cache their frames for training.

The only room that knows video libraries. Packing uses decord (and PyAV, where it is there, for what decord cannot
read), and only inside the reader process (``worker``): nothing of it imports decord in the process of the caller.

    find       source, folders, lists, matching, labels, duplicates    which videos, with which labels, in which splits
    read       settings, selection, opened, video_file (promise), images, arrays, resize    one video to its frames
    pool       worker                                                  many videos, in processes of their own
    cache      request, identity, probe, chunk, frames                 all frames on disk; resumed, shared, checked

Beside them ``mjpeg`` writes small videos and ``synthetic`` makes a whole corpus of them.

For ``neuralloader bench`` there are ``clip_readers``, ``pyav_reader``, ``clip_files`` and ``rivals``: clips read from
the original videos, and from the same frames kept in other ways. They use the libraries in the process that asks.
"""
