"""HTML from jinja2 templates: every value is escaped unless it is marked as safe, a missing one is an error."""

import functools

from jinja2 import Environment, PackageLoader, StrictUndefined


@functools.cache
def environment(package: str) -> Environment:
    """The templates in the folder `templates` of a package.

    Values that stand in scripts go through `tojson`, which leaves no way out of the script element.
    """
    made = Environment(
        loader=PackageLoader(package),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    return made


def render(package: str, template: str, **values: object) -> str:
    """A page, or a part of one.

    Args:
      package: with a folder `templates`.
      template: file in it.
      values: what it names.
    """
    return environment(package).get_template(template).render(**values)
