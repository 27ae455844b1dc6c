"""The filter `language`: py3langid's naive Bayes model, which comes inside its package."""

from __future__ import annotations

from collections.abc import Callable

from py3langid.langid import MODEL_FILE, LanguageIdentifier

from core.api import ConfigError, Record, text_of
from plugins.filters import LanguageConfig


def build(config: LanguageConfig) -> Callable[[Record], str]:
    """The filter. Raises: ConfigError for a language that the model does not know."""
    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    known = sorted(set(identifier.nb_classes))
    unknown = [code for code in config.keep if code not in known]
    if unknown:
        raise ConfigError(f"there is no language '{unknown[0]}'", "keep", f"choose among: {', '.join(known)}")

    def judge(record: Record) -> str:
        text = text_of(record, config.of).strip()
        if len(text) < config.min_chars:
            return ""
        language, probability = identifier.classify(text)
        if language not in config.keep:
            return f"language {language}: probability {probability:.2f}"
        if probability < config.min_probability:
            return f"uncertain language: {language} with probability {probability:.2f}"
        return ""

    return judge
