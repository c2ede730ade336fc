"""Public traces and server logs, read into ``traces.schema.Request``.

Each source has a ``read_*`` function to ``imported.Imported``; ``convert`` of this folder's parent
chooses among them and then settles, in this order, times, blocks, prompts and sessions.

- ``fields``: one value of a record, and the sentence for a wrong one
- ``texts``: a file's text and kind; gzip, byte order marks
- ``readers``: CSV, Parquet, JSON and YAML as records
- ``sources``: several files as records with places
- ``clock``: seconds or milliseconds, told or asked for
- ``imported``: what a reader returns
- ``used``: what of a record is not carried
- ``turns``: sessions: delays, and what a turn's prompt is
- ``arrivals``: times that a source lacks or rounds
- ``blocks``: block sizes, and hashes that are not chained
- ``detect``: which format a file is in
- ``mooncake``: Mooncake, AIPerf, GuideLLM's traces
- ``bailian``: Alibaba's Bailian
- ``tables``: Azure, BurstGPT, Baseten, Vidur, ServeGen, our own CSV
- ``conversations``: Copilot's agents, WEKA
- ``dynamo``: Dynamo's request traces
- ``benchmarks``: bench_serving, vLLM's bench serve, GuideLLM
- ``aiperf_records``: what AIPerf writes of each request
- ``request_log``: requests that a server answered
- ``settle``: from a reader's result to requests with arrivals in seconds
"""
