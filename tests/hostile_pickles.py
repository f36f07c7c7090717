"""What the restricted reader must refuse."""


class Payload:
    """What an attacker would pickle."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call
