"""The three computations of a decode step that no model owns: sequential head, lengths, rejection.

``head``, ``lengths`` and ``rejection`` each hold the law, its PyTorch version (the reference, and
what runs on CPU) and one public function that takes the Triton version (``triton_*``, imported
only then) for tensors on a GPU. They know neither SGLang nor any policy.
"""
