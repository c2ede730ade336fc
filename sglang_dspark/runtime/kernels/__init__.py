"""The three computations of a decode step that no model owns: sequential head, lengths, rejection.

Each of three holds the law, its PyTorch version (the reference, and what runs on CPU) and one
public function that takes the Triton version, imported only then, for tensors on a GPU. They know
neither SGLang nor any policy.

- ``head``: bias, probabilities and a draw, slot by slot
- ``lengths``: from confidences to survival, from a budget to lengths
- ``rejection``: accept or resample, ragged rows
- ``triton_draw``: the draw on a GPU, of two of them
- ``triton_head``: ``head`` on a GPU
- ``triton_lengths``: ``lengths`` on a GPU
- ``triton_rejection``: ``rejection`` on a GPU
"""
