"""What a step costs: from a file, a data sheet or SGLang's tables to one price for everybody.

In order of import:

- ``bounds``: how long a step of any server can take
- ``schema``: the parts of a cost-model file and what is refused in them
- ``roofline``: step times from a model's config and a GPU's data sheet
- ``fit``: measured seconds to the parts of an additive model
- ``curve``: seconds as a function of a size, from probes and a rule beyond them
- ``tables``: dense arrays, and the compiled functions that price a step
- ``sglang_files``: SGLang's own cost-table files, and how it reads them
- ``sglang_prices``: what they price, as blocks of a cost model
- ``doubt``: how far prices may be off, and the model for any way to be off
- ``model``: ``CostModel``, the file as a whole
- ``library``: the shipped ones by name, any by its file
- ``composed``: a model from operators that were timed one by one
- ``sglang_tables``: what a cost model looks like to SGLang's planner
- ``tensorrt_llm``: and to TensorRT-LLM's
"""
