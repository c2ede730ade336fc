"""What a step costs: from a file, a data sheet or SGLang's tables to one price for everybody.

In order of import:

- ``schema``: the parts of a cost-model file and what is refused in them
- ``roofline``: step times from a model's config and a GPU's data sheet
- ``fit``: measured seconds to the parts of an additive model
- ``curve``: seconds as a function of a size, from probes and a rule beyond them
- ``tables``: dense arrays, and the compiled functions that price a step
- ``model``: ``CostModel``, the file as a whole and the shipped ones by name
- ``composed``: a model from operators that were timed one by one
- ``sglang_tables``: SGLang's own cost-table files, in and out
"""
