"""`refsam-bench report`: accuracy, speed and pictures of several bundles on one page, and as JSON.

A data set is run through every *side*: the PyTorch references and the variants of the bundles
(`data_sets`, `outcome`). What was found becomes one JSON object (`measure`, `record`), and the page
is made of that object and pictures alone (`pictures`, `plots`, `page`).
"""
