"""Categories of questions, the templates that a clip can be staged for, and how these ask."""

TEXTS: dict[str, str] = {
    "colour_of": "what color is the {shape}?",
    "shape_of": "what shape is the {colour} object?",
    "count_shape": "how many {plural} are there?",
    "count_colour": "how many {colour} objects are there?",
    "relation": "where is the {a} relative to the {b}?",
    "is_relation": "is the {a} {phrase} the {b}?",
    "direction": "which way does the {a} move?",
    "mover": "which object moves {direction}?",
    "mover_colour": "what color is the object that moves {direction}?",
    "first": "which object appeared first?",
    "last": "which object appeared last?",
    "first_colour": "which appeared first, {a} or {b}?",
    "last_colour": "which appeared last, {a} or {b}?",
    "flash_second": "in which second was the flash?",
    "appear_second": "in which second did the {a} appear?",
    "flash_quarter": "in which quarter was the flash?",
    "appear_quarter": "in which quarter did the {a} appear?",
    "tiny_colour": "what color is the tiny dot?",
    "tiny_where": "where is the tiny dot?",
    "exists": "is there {an} {a}?",
    "was_flash": "was there a flash?",
    "changed": "which object changed color?",
    "now": "what color is the {shape} at the end?",
    "before": "what color is the {shape} at the start?",
    "did_change": "did the {a} change color?",
    "vanished": "which object vanished?",
    "vanished_colour": "what color was the object that vanished?",
    "needle_colour": "what color was the object shown for one moment?",
    "needle_shape": "what shape was the object shown for one moment?",
}

DETAIL_TEXTS: dict[str, str] = {
    "small_colour": "what color is the small {shape}?",
    "small_shape": "what shape is the small {colour} object?",
    "letter_of": "which letter is {colour}?",
    "letter_colour": "what color is the letter {letter}?",
    "turn_first": "which way does the {a} move before it turns?",
    "turn_last": "which way does the {a} move after it turns?",
    "middle": "which object appeared second?",
    "middle_colour": "which appeared second, {a}, {b} or {c}?",
    "earlier": "did the {a} appear before the {b}?",
    "alike_direction": "which way does the {a} go?",
    "alike_mover": "what shape is the {colour} object that goes {direction}?",
    "pair": "is there {an} {a} here?",
    "pair_other": "can {an} {a} be seen?",
}
"""Of the categories that need many tokens."""

FOCUS: dict[str, tuple[str, ...]] = {
    "attribute": ("colour_of", "shape_of"),
    "counting": ("count_shape", "count_colour"),
    "spatial": ("relation", "is_relation"),
    "motion": ("direction", "mover"),
    "order": ("first", "last"),
    "localisation": ("flash_second", "appear_second", "flash_quarter", "appear_quarter"),
    "rare": ("tiny_colour", "tiny_where"),
    "hallucination": ("exists", "was_flash"),
    "change": ("changed", "now", "before", "did_change", "vanished"),
    "needle": ("needle_colour", "needle_shape"),
}
"""Categories, and the templates that a clip can be staged for."""

DETAIL_FOCUS: dict[str, tuple[str, ...]] = {
    "small": ("small_colour", "small_shape"),
    "letter": ("letter_of", "letter_colour"),
    "turn": ("turn_first", "turn_last"),
    "sequence": ("middle", "earlier"),
    "alike": ("alike_direction", "alike_mover"),
    "pair": ("pair", "pair_other"),
}
"""Categories that need many tokens, and their templates; the default benchmark asks about none of them."""

CATEGORIES = tuple(FOCUS)
ALL_CATEGORIES = (*FOCUS, *DETAIL_FOCUS)
ALL_FOCUS = FOCUS | DETAIL_FOCUS
ALL_TEXTS = TEXTS | DETAIL_TEXTS
