"""What a server was asked, what it decided and what came of it, on disk.

Read and replayed where there is neither SGLang nor torch. In order of import:

- ``records``: ``StepRecord``, one decode step as the server ran it
- ``info_records``: the same from SGLang's own account of its DSPARK
- ``writer``: records to a folder of Parquet parts, bounded, off the serving threads
- ``step_parts``: one part of a step log
- ``step_log``: a folder of them, and the command that plans every step again
- ``request_parts``: one part of a request log
- ``acceptance_log``: the file of verify rounds, its columns and its rules
- ``speculation_profile``: acceptance by position, as other tools publish it
- ``rounds``: verify rounds as columns, the log that a replay's ``--acceptance`` reads
"""
