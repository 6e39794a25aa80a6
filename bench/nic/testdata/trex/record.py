"""Stands in for TRex's API in tests: classes with the parameters of the real ones, which remember what they were given."""


def recorder(name, *parameters, **values):
    """A class whose objects take these parameters, by position or name, and these class attributes."""

    def init(self, *args, **kwargs):
        unknown = set(kwargs) - set(parameters)
        if unknown or len(args) > len(parameters):
            raise TypeError("%s takes %s, not %s" % (name, parameters, sorted(unknown) or args))
        self.given = dict(zip(parameters, args), **kwargs)

    return type(name, (), {"__init__": init, "__getattr__": lambda self, key: self.given.get(key), **values})


def plain(value):
    """What an object was given, in types that JSON knows."""
    if hasattr(value, "given"):
        return {"type": type(value).__name__, **{k: plain(v) for k, v in value.given.items()}}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, bytes):
        return len(value)
    return value
