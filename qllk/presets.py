"""The systems as rows of data. Imports no torch."""

from .spec import Patch, Spec

CONV = ("conv", {"width": 8})
# Channels that forget with half-lives from one patch to 256 of them: 8 to 2,048 bytes.
FADING_SUM = ("cumsum", {"normaliser": "rms", "half_lives": [1, 256]})
SQUARED_RELU = ("relu2", {"ratio": 4})


def _qllk_2(d_model: int) -> Spec:
    """One byte layer, the cumulative sum over patches of eight, two byte layers on both."""
    return Spec(
        d_model=d_model,
        layers=3,
        mixers=(CONV,),
        mlp=SQUARED_RELU,
        patch=Patch(size=8, d_model=d_model, layers=2, mixers=(FADING_SUM,), after=2),
    )


def _gpt(d_model: int, layers: int, heads: int) -> Spec:
    """Softmax attention over everything before, with rotary positions; the rest as in qllk-2."""
    return Spec(
        d_model=d_model,
        layers=layers,
        mixers=(("softmax", {"heads": heads}),),
        mlp=SQUARED_RELU,
        positions="rotary",
    )


PRESETS = {
    # QLLK corrected: patches aligned by target, a local decoder, the cumulative sum as the global
    # mixer. Chosen by the race, see README.  1,298,944 parameters.
    "qllk-2": _qllk_2(128),
    # The same small enough for a lesson and for tests.  342,272 parameters.
    "qllk-2-nano": _qllk_2(64),
    # The control of every race: qllk-2 without its global path.
    "qllk-2-local": _qllk_2(128).but(patch=None),
    # The baseline, at the parameters of qllk-2.
    "gpt": _gpt(160, layers=4, heads=5),
    "gpt-nano": _gpt(64, layers=4, heads=2),
}
