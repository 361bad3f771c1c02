"""How Hypothesis looks for a failure when a guard is removed: the same way each time, and content with the first."""

from hypothesis import Phase, settings

settings.register_profile("guards", phases=[Phase.explicit, Phase.generate], derandomize=True, database=None)
