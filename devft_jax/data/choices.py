"""The names from which data options choose."""

METHODS: dict[str, str] = {
    "iid": "shuffled and divided evenly",
    "dirichlet": "every category spread over clients by a Dirichlet(alpha) draw",
    "topic": "clusters of similar texts, each spread over clients by a Dirichlet(alpha) draw",
    "length": "bins of example lengths, each spread over clients by a Dirichlet(alpha) draw",
    "quantity": "shuffled, client sizes in proportion to a Dirichlet(alpha) draw",
    "field": "one client per value of the category field",
    "file": "one client per file",
}
"""Every way to split examples over clients, with what it does."""

NATURAL = ("field", "file")
"""Splits in which the data sets the clients."""

OVERLONG = ("drop", "error")
"""What can be done with a prompt that leaves no space for a completion."""
