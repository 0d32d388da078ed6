"""Parameters in int8 as floats again."""


def restored(params):
    """The floats that rounded parameters stand for."""
    out = {k: v for k, v in params.items() if not k.endswith("_scale")}
    for name in {"embed", "head"} & out.keys():
        out[name] = params[name] * params[f"{name}_scale"]
    out["layers"] = {
        name: leaf
        if "scale" not in leaf
        else {k: v for k, v in leaf.items() if k not in ("kernel", "scale")}
        | {"kernel": leaf["kernel"] * leaf["scale"]}
        for name, leaf in params["layers"].items()
    }
    return out
