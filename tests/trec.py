"""TREC run files as trec_eval reads them."""


def read_run(path):
    """Query id → document id → score, in the order of the file; ranks and tags are read past."""
    run = {}
    for line in path.read_bytes().splitlines():
        query, _, document, _, score, _ = (column.decode() for column in line.split())  # bytes split at ASCII white space alone
        run.setdefault(query, {})[document] = float(score)
    return run
