"""The drafter, on tiny models; ``independent`` is a second writing of its laws."""
