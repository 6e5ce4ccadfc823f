"""What the command line says when it refuses."""


def one_sentence(err):
    lines = [line for line in err.strip().splitlines() if line]
    return len(lines) == 1 and lines[0].startswith("error: ") and lines[0].endswith((".", "?"))
