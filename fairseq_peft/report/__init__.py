"""From the files that runs leave to tables, statistics and pictures.

``result`` makes result.json of one finished run; ``runs`` finds and checks them; ``rows`` and
``stats`` make one row a (data, init, method); ``tables`` and ``plots`` show the rows; ``tfidf`` is
the baseline that reads the raw text. No torch and no fairseq here, and nothing heavy at import.
"""
