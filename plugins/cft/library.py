"""The directives that come with `stage=cft`, in words of our own: ten categories, and a control. Torch-free.

The categories are those that the authors' generation prompt enumerates (Choi et al. 2025, arXiv:2503.09032). The
wording of the paper's prompts is not known to us.
"""

from __future__ import annotations

KIND = "directives"
"""Kind of the text sets that the stage draws from."""

STUDY: dict[str, list[str]] = {
    "application": [
        "While reading, look for where this could be put to use.",
        "Think of a situation at work in which somebody would need what follows.",
        "Ask of each point below: who could do something better for knowing it?",
    ],
    "in-depth exploration": [
        "Study the details below and ask what mechanism lies beneath each one.",
        "Go through the following slowly, and follow every cause to its effect.",
        "Do not stop at what the passage says; work out why it is so.",
    ],
    "reflection": [
        "Pause after each point and weigh it against what you already believe.",
        "As you read on, notice what surprises you and why.",
        "Let each statement below change or confirm what you thought before.",
    ],
    "creative interpretation": [
        "Picture the ideas below in an unusual form or analogy.",
        "Read the following as if you had to draw it for a child.",
        "Find an everyday scene that works in the way the passage describes.",
    ],
    "summary and synthesis": [
        "Read so that you could restate the passage in a few lines.",
        "Gather the threads of the following text into one picture.",
        "Keep track of how each part below adds to the whole.",
    ],
    "key concepts": [
        "Pick out the definitions and claims everything else rests on.",
        "Watch for the terms that return in the text below, and fix what each one means.",
        "Separate what carries the passage from what only decorates it.",
    ],
    "context": [
        "Place the passage in its wider field as you go.",
        "Consider what came before the work described here, and what it makes possible.",
        "Read the following with an eye to who wrote it, when, and to what end.",
    ],
    "critical analysis": [
        "Test each claim below for evidence and gaps.",
        "Look for what the text takes for granted without saying so.",
        "Judge how far the following reasons support what they are given for.",
    ],
    "questions": [
        "Turn every paragraph into a question, then find its answer.",
        "Before each sentence, guess what it will tell you; after it, check.",
        "Read the passage as the answer to a question, and find out which.",
    ],
    "comparison": [
        "Note what is alike and unlike between the things described.",
        "Hold what you read below against something you know well.",
        "Set the cases in the following text side by side and look for the difference that matters.",
    ],
}
"""Directives that say how to read the text that follows; they carry no fact of it and ask for no answer."""

NEGATIVE: dict[str, list[str]] = {
    "discouraging": [
        "Nothing in the following text matters; let it pass.",
        "There is no need to understand or remember what comes next.",
        "Skip over the meaning of the words below.",
    ],
    "irrelevant": [
        "The bakery on the corner opens at seven on weekdays.",
        "Remember to water the plants on the balcony.",
        "Blue paint dries faster than it looks in the tin.",
    ],
}
"""The control: directives that discourage, or that have nothing to do with any text."""
