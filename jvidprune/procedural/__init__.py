"""Generated videos of moving shapes, of which everything is known.

`drawing` has the shapes, patterns and directions of all of them. `world`, `scenario`, `paint`, `templates` and
`benchmark` make the benchmark's clips with questions whose answers are known, `export` writes them as files; `clips`
draws the clip that stands in where a user gives no video. `stories` and `categories` belong to the benchmark, too.
"""
