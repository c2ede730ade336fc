"""The capacity report: ``simulator.capacity.study`` simulates, this room concludes and sets pages.

In order of import:

- ``words``: numbers in words, how sure the answer is, the limits
- ``answer``: the headline and the sentences of the first page
- ``report``: ``report.json``, every number and the conclusions
- ``tables``: its tables as text cells
- ``panels``: what its own panels draw
- ``sheet``: heading, words and provenance around a figure
- ``figures``: which panels stand together
- ``html_file``: ``report.html``
- ``pdf_file``: ``report.pdf``
- ``command``: the command ``dspark capacity``
"""
