"""Open answers of a sweep, read by a judge: a language model behind a server, or whoever scores an exported file.

The open answers of a run (`cases`) are put to a judge in the words of `rubrics`, or in those of lmms-eval's judges
(`published`); `asking` sends them to a server of the OpenAI protocol (`server`) and reads scores out of its replies
(`replies`), `exchange` writes and reads files for judges elsewhere. Verdicts stand beside the samples (`verdicts`);
`scores` makes numbers of them.
"""

from jvidprune.evals.judge.asking import Outcome, ask_judge
from jvidprune.evals.judge.cases import Case, NotJudged, cases_of, open_answers
from jvidprune.evals.judge.rubrics import RUBRICS, Rubric
from jvidprune.evals.judge.scores import Judged, JudgedRun, judged_run
from jvidprune.evals.judge.server import ChatServer
