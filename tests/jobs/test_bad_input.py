"""Bad input on the command line: one line that says it, exit code 2, nothing left, and at once."""

from __future__ import annotations

import os
import shlex
import struct
import sys
import time
import zlib
from pathlib import Path

import pytest
import torch
from PIL import Image

pytest.importorskip("diffusers")

import glass_flows.cli
from glass_flows.runs import RunFolder
from glass_flows.steering import Costs, SearchResult

GIVEN = {
    "{BIG}": "9" * 400,
    "{HUGE}": str(2**70),
    "{LONG}": "x" * 8000,
    "{DEEP}": "[" * 100_000,
    "{MANY}": "two red circles " * 500,
    "{HALF}": "\udcff",
}
SECONDS = 2.0  # of a processor

# By the command that they begin with: what comes after it, and what is said.
QUICK: dict[str, list[tuple[str, str]]] = {
    "align --out OUT": [
        ("--particles 0", "particles must be an integer >= 1, got 0"),
        ("--particles -1", "particles must be an integer >= 1, got -1"),
        ("--particles x", "particles must be an integer >= 1, got 'x'"),
        ("--particles 1.5", "particles must be an integer >= 1, got '1.5'"),
        ("--particles '²'", "particles must be an integer >= 1, got '²'"),
        ("--particles '{BIG}'", "particles must be at most 16,777,216, got"),
        ("--particles 200000000", "particles must be at most 16,777,216, got"),
        ("--transitions 0", "transitions must be an integer >= 1, got 0"),
        ("--transitions 10000000", "transitions must be at most 100,000, got"),
        ("--transitions '{BIG}'", "transitions must be at most 100,000, got"),
        ("--steps 0", "steps must be an integer >= 1, got 0"),
        ("--steps 1,2", "steps lists 2 values for 6 transitions"),
        ("--steps ''", "steps must be an integer >= 1, got ''"),
        ("--rho 2", "rho must lie in [-1, 1], got 2.0"),
        ("--rho nan", "rho must lie in [-1, 1], got nan"),
        ("--rho much", "unknown rho rule 'much'. rho must be a number"),
        ("--scale nan", "scale must be a finite number >= 0, got nan"),
        ("--scale inf", "scale must be a finite number >= 0, got inf"),
        ("--scale 1e999", "scale must be a finite number >= 0, got inf"),
        ("--scale x", "unknown scale 'x'. scale must be a finite number >= 0, 'auto'"),
        ("--times 0,x,1", "times[1] must be finite, got"),
        ("--times 1,0", "6 transitions need 7 times (starts and the"),
        ("--solver papr", "unknown solver 'papr'. Did you mean 'paper'?"),
        ("--solver paper:x", "solver: sigma0 must be a finite number"),
        ("--start pur", "unknown start 'pur'. Did you mean 'pure'?"),
        ("--method stering", "unknown method 'stering'. Did you mean"),
        ("--potential maxx", "unknown potential 'maxx'. Did you mean 'max'?"),
        ("--value posterior:x", "value: samples must be an"),
        ("--value posterior:0", "value: samples must be an"),
        ("--schedule adaptive:2", "schedule: ess must lie in (0, 1)"),
        ("--resampling foo", "unknown resampling scheme 'foo'. Allowed:"),
        ("--ess-threshold 2", "ess_threshold must lie in [0, 1], got 2.0"),
        ("--ess-threshold nan", "ess_threshold must lie in [0, 1], got nan"),
        ("--seed -1", "seed must be an integer in [0, 2^63), got"),
        ("--seed '{HUGE}'", "seed must be an integer in [0, 2^63), got"),
        ("--seed x", "Invalid value for '--seed': Input should be a"),
        ("--seed '²'", "Invalid value for '--seed': Input should be a"),
        ("--populations 1", "Invalid value for '--populations': Input"),
        ("--populations x", "Invalid value for '--populations': Input"),
        ("--populations '{BIG}'", "populations must be at most 1,000,000, got"),
        ("--reward 'class:²'", "reward 'class:N' needs a digit 0 to 9, got"),
        ("--reward class:12", "reward 'class:N' needs a digit 0 to 9, got"),
        ("--reward class:-1", "reward 'class:N' needs a digit 0 to 9, got"),
        ("--reward clas:8", "unknown reward 'clas'. Did you mean 'class'?"),
        ("--reward :f", "unknown reward ''. Allowed: 'class', 'judge'."),
        ("--prompt 10", "for the digits a prompt is 0 to 9, got '10';"),
        ("--prompt '²'", "for the digits a prompt is 0 to 9, got '²';"),
        ("--prompt 'a cat'", "for the digits a prompt is 0 to 9, got 'a"),
        ("--prompt '{LONG}'", "for the digits a prompt is 0 to 9, got"),
        ("--twist x", "twist must be a number eta >= 0,"),
        ("--twist -1", "twist: scale must be a finite number >= 0"),
        ("--reward-guidance netwrk", "unknown guidance 'netwrk'. Did you mean"),
        ("--boundaries 0", "boundaries must be an integer >= 1, got 0"),
        ("--boundaries x", "boundaries must be an integer >= 1, got 'x'"),
        ("--degenerate foo", "unknown degenerate 'foo'. Allowed: 'carry',"),
        ("--model digit", "unknown model 'digit'. Did you mean 'digits'?"),
        ("--model ./nofolder", "--model ./nofolder: there is no such folder"),
        ("--model digits:nofolder", "--model digits: 'nofolder' is no folder; give"),
        ("--model '{LONG}'", "[Errno 36] File name too long"),
        ("--model ''", "unknown model ''. Allowed: 'FOLDER',"),
        ("--model ../up/", "--model ../up/: there is no such folder"),
        ("--budget 2min", "--budget: only for a diffusers pipeline;"),
        ("--decode-batch 3", "--decode-batch: only for a diffusers"),
        ("--height 33", "--height: only for a diffusers pipeline;"),
        ("--device foo", "unknown device 'foo'. Allowed: 'cpu', 'cuda',"),
        ("--pick x", "--pick: nothing to --method steering, which"),
        ("--checkpoint x", "Got unexpected extra argument(s) (x)"),
        ("--method beam --children 3", "children = 3 must divide particles = 8, which"),
        ("--method beam --twist 1", "--twist: nothing to --method beam, which has"),
        ("--argument seed=1", "--argument seed=...: that is --seed here"),
        ("--nosuch 1", "No such option: --nosuch (Possible options:"),
        ("--particles", "Option '--particles' requires an argument."),
        ("more", "Got unexpected extra argument(s) (more)"),
        ("--class 3", "No such option: --class (Possible options:"),
        ("--model shapes", "give at least one --prompt"),
        ("--model shapes --prompt 'a cat'", "'a cat' is no prompt of the Shapes world."),
        ("--model shapes --prompt '{MANY}'", "'two red circles two red circles two red"),
        ("--model shapes --prompt ''", "'' is no prompt of the Shapes world. Write"),
        ("--model shapes --prompt '{HALF}'", "the prompt holds half of a character, the"),
        ("--model EMPTY --prompt x --reward mine:f", "cannot load a diffusers pipeline from"),
        ("--model DAMAGED --prompt x --reward mine:f", "cannot load a diffusers pipeline from"),
        ("--model sit --prompt 1", "--model sit: '' is no folder; give sit:FOLDER"),
    ],
    "": [
        ("align", "Missing option '--out'."),
        ("aling", "No such command 'aling'. Did you mean"),
        ("align --out FILE/below", "cannot write to the output folder"),
        ("align --out FILE", "cannot write to the output folder 'FILE':"),
        ("align --out /proc/nothing", "cannot write to the output folder"),
        ("align --out FILE/a/b", "cannot write to the output folder 'FILE/a/b':"),
        ("batch nosuch.txt --out OUT", "cannot read the prompts in 'nosuch.txt':"),
        ("batch P.yaml --out OUT", "unknown kind of prompt file '.yaml'. Allowed:"),
        ("batch EMPTYFILE.txt --out OUT", "'EMPTYFILE.txt' holds no prompts"),
        ("batch latin.txt --out OUT", "cannot read the prompts in 'latin.txt': line"),
        ("batch deep.jsonl --out OUT", "'deep.jsonl', line 1 is not JSON: maximum"),
        ("batch half.jsonl --out OUT", "'half.jsonl', line 1 cannot be taken: the"),
        ("batch cut.csv --out OUT", "'cut.csv', line 2 has 2 fields, and the table"),
        ("batch EMPTY.txt --out OUT", "cannot read the prompts in 'EMPTY.txt':"),
        ("batch P.txt --out FILE", "cannot write to the output folder 'FILE':"),
        ("sample --out FILE", "cannot write to the output folder 'FILE':"),
        ("plan --path linar", "unknown path 'linar'. Did you mean 'linear'?"),
        ("plan --transitions 10000000", "transitions must be at most 100,000, got"),
        ("plan --steps 1000000000", "steps must be at most 100,000, got"),
        ("plan --times 0,x,1 --transitions 2", "times[1] must be finite, got"),
        ("plan --rho nan", "rho must lie in [-1, 1], got nan"),
        ("plan --solver euler-maruyama --rho 0.5", "Euler-Maruyama has no rho: give rho=None"),
        ("evaluate nosuch --out OUT --reward mine:f", "'nosuch' is no folder"),
        ("evaluate EMPTY --out OUT --reward mine:f", "'EMPTY' holds no images (.png, .jpg, .jpeg,"),
        ("evaluate BOMB --out OUT --reward mine:f", "'BOMB/a.png' is no image: Image size"),
        ("evaluate NOIMAGE --out OUT --reward mine:f", "'NOIMAGE/a.png' is no image: cannot ident"),
        ("evaluate IMAGES --out FILE --reward mine:f", "cannot write to the output folder 'FILE':"),
        ("evaluate --out OUT", "Missing argument 'folders'."),
        ("report nosuch", "'nosuch' is no folder: give the folder of a"),
        ("report EMPTY", "'EMPTY' holds no run: give the folder of a"),
        ("report RUN --out /dev/null", "cannot write the report to '/dev/null':"),
        ("report RUN --out LINK", "cannot write the report to 'LINK': [Errno 22]"),
        ("report RUN --out FILE/x.html", "cannot write the report to 'FILE/x.html':"),
        ("report BADRUN", "'BADRUN/run.json' is damaged"),
        ("report DEEPRUN", "'DEEPRUN/run.json' is damaged"),
        ("runs list nosuch", "'nosuch' is no folder"),
        ("runs show EMPTY", "'EMPTY' is no run: it has no run.json. Runs"),
        ("runs show BADRUN", "'BADRUN/run.json' is damaged"),
        ("runs show DEEPRUN", "'DEEPRUN/run.json' is damaged"),
        ("runs compare nosuch", "'nosuch' is no folder: give the folder of a"),
        ("runs shwo", "No such command 'shwo'. Did you mean 'show'?"),
        ("convert reward clip FILE OUT", "unknown reward to convert 'clip'. Allowed:"),
        ("convert reward hps nosuch.pt OUT", "checkpoint 'nosuch.pt' for the reward 'hps':"),
        ("convert reward hps FILE OUT", "checkpoint 'FILE' for the reward 'hps': it is"),
        ("convert sit nosuch OUT", "No such command 'sit'."),
        ("train digits --out FILE", "cannot write to the output folder 'FILE':"),
        ("train clip --out OUT --steps 0", "steps must be an integer >= 1, got 0"),
        ("train clip --out OUT --pipeline nosuch", "'nosuch' holds no Shapes pipeline"),
        ("train clip --out OUT --start nosuch", "'nosuch' holds no CLIPModel"),
        ("train clip --out FILE", "cannot write to the output folder 'FILE':"),
        ("train nosuch --out OUT", "No such command 'nosuch'."),
        ("compare --out FILE", "cannot write to the output folder 'FILE':"),
        ("reproduce nosuch --out OUT", "unknown experiment 'nosuch'. Allowed:"),
        ("reproduce alignment --out OUT --model nosuch", "unknown model 'nosuch'. Allowed: 'FOLDE"),
        ("reproduce alignment --out OUT --model EMPTY --prompts nosuch.txt", "cannot read the pro"),
        ("reproduce posterior --out OUT --model shapes", "the experiment 'posterior' looks inside"),
        ("reproduce values --out FILE", "cannot write to the output folder 'FILE':"),
        ("reproduce --out OUT", "Missing argument 'names'."),
        ("check --samples 0", "--samples must be an integer >= 2, got 0"),
        ("check --samples -5", "--samples must be an integer >= 2, got -5"),
        ("check --seed -1", "seed must be an integer in [0, 2^63), got"),
        ("check --samples '{BIG}'", "--samples must be at most 1,000,000, got"),
        ("audit nosuch", "unknown sampler 'nosuch'. Allowed: 'DDIMParallelScheduler',"),
        ("audit '{LONG}'", "unknown sampler 'xxx"),
        ("audit ..:f", "a sampler of your own is module:function, and"),
        ("audit broken:f", "cannot import the sampler's module 'broken':"),
        ("audit mine:none", "unknown sampler in module mine 'none'."),
        ("audit mine:number", "mine:number is no function but"),
        ("audit DDIMScheduler --option beta_schedule=no", "DDIMScheduler(beta_schedule=no): NotI"),
        ("audit DDIMScheduler --option prediction_type=no", "unknown prediction_type 'no'."),
        ("audit DDIMScheduler --option nosuch=1", "unknown option of DDIMScheduler 'nosuch'."),
        ("audit DDIMScheduler --option x", "--option must be NAME=VALUE, got 'x'"),
        ("audit DDIMScheduler --path edm", "path is for functions: a scheduler has its own"),
        ("audit DDIMScheduler --samples 10", "samples must be an integer >= 1000, got 10"),
        ("audit DDIMScheduler --samples '{BIG}'", "samples must be at most 200,000, got"),
        ("audit DDIMScheduler --transitions '{BIG}'", "--transitions must be numbers as '4,8"),
        ("audit DDIMScheduler --transitions 4", "transitions must be at least two numbers,"),
        ("audit DDIMScheduler --tolerance nan", "tolerance must lie in (0, 1), got nan"),
        ("audit DDIMScheduler --out FILE", "cannot write to the output folder 'FILE':"),
    ],
    "align --out OUT --model shapes --prompt 'two red circles'": [
        ("--reward :f", "a reward of your own is module:function, and"),
        ("--reward mine", "unknown reward 'mine'. Allowed: 'aesthetic',"),
        ("--reward broken:f", "cannot import the reward's module 'broken':"),
        (
            "--reward mine.py:f",
            "cannot import the reward's module 'mine.py': ModuleNotFoundError: No module named "
            "'mine.py'; 'mine' is not a package. A module is named without .py: mine:f",
        ),
        ("--reward raising:f", "cannot import the reward's module 'raising':"),
        ("--reward quitting:f", "cannot import the reward's module 'quitting':"),
        ("--reward ..:f", "a reward of your own is module:function, and"),
        ("--reward mine:none", "unknown reward in module mine 'none'."),
        ("--reward mine:number", "a reward must be a Reward or a function of a"),
        ("--reward clip:nofolder", "cannot load CLIPModel from 'nofolder': We"),
        ("--reward hps", "the reward 'hps' has no published"),
        ("--reward class:8", "cannot import the reward's module 'class':"),
        ("--reward nosuch_module:f", "cannot import the reward's module"),
        ("--reward 'a b:f'", "a reward of your own is module:function, and"),
        ("--device foo", "unknown device 'foo'. Allowed: 'cpu', 'cuda',"),
        ("--device cuda:99", "device 'cuda:99' cannot be used here (Torch"),
        ("--device ''", "unknown device ''"),
        ("--dtype int8", "unknown dtype 'int8'. Allowed: 'bfloat16',"),
        ("--offload disk", "unknown offload 'disk'. Allowed: 'model',"),
        ("--argument x", "--argument must be NAME=VALUE, got 'x'"),
        ("--argument x=NaN", "--argument x must be finite, got nan"),
        ("--argument x=1e999", "--argument x must be finite, got inf"),
        ("--argument 2=3", "--argument must be NAME=VALUE, got '2=3'"),
        ("--argument steps=3", "--argument steps=...: that is --steps here"),
        ("--guidance-scale nan", "--guidance-scale must be finite, got nan"),
        ("--guidance-scale x", "Invalid value for '--guidance-scale': Input"),
        ("--height x", "Invalid value for '--height': Input should be"),
        ("--max-batch 0", "max_batch must be an integer >= 1, got 0"),
        ("--decode-batch x", "decode_batch must be an integer >= 1, got 'x'"),
        ("--micro-batch 0", "micro_batch must be an integer >= 1, got 0"),
        ("--micro-batch x", "Invalid value for '--micro-batch': Input"),
        ("--budget '{BIG}'", "a budget is at most 1,000,000,000,000, got"),
        ("--budget x", "a budget is a time such as 90s, 2min or 1h,"),
        ("--budget 0", "a budget is a time such as 90s, 2min or 1h,"),
        ("--budget -5", "a budget is a time such as 90s, 2min or 1h,"),
        ("--budget 1e9", "a budget is a time such as 90s, 2min or 1h,"),
        ("--particles 0", "particles must be an integer >= 1, got 0"),
        ("--rho 2", "rho must lie in [-1, 1], got 2.0"),
        ("--scale -1", "scale must be a finite number >= 0, got -1.0"),
        ("--populations 2", "--populations: only for the digits; --model"),
        ("--twist 1:cap=x", "twist: cap must be > 0, got 'x'"),
        ("--micro-batch '{BIG}'", "micro_batch must be at most 1,000,000, got"),
        ("--rho None", "rho=None ('none') is for Euler-Maruyama alone"),
        ("--frames x", "unknown frames 'x'. frames must be"),
        ("--frames 0", "frames must be"),
        ("--also nosuch", "unknown reward 'nosuch'."),
        ("--also clip --also clip", "also: a reward is named twice in clip, clip"),
        ("--again IMAGES/a.png", "'IMAGES/a.png' does not say what it was drawn with"),
        ("--again FILE", "'FILE' cannot be read as an image"),
        ("--until 3", "--until: nothing to --method steering"),
        ("--init IMAGES/a.png", "--init: only for --method refine"),
        ("--scale auto:-1", "scale: nats must be a finite number > 0, got -1.0"),
        ("--budget 2min --micro-batch 2", "--budget measures one process"),
    ],
    "align --out OUT --model shapes --prompt 'two red circles' --method refine": [
        ("--moves -1", "moves must be an integer >= 0, got -1"),
        ("--moves '{BIG}'", "moves must be at most"),
        ("--until x", "until must be"),
        ("--move-times 2", "move_times"),
        ("--move-times 0,x", "move_times"),
        ("--move-steps 0", "move_steps must be an integer >= 1, got 0"),
        ("--rescore x", "rescore must be an integer"),
        ("--init FILE", "'FILE' cannot be read as an image"),
        ("--init EMPTY", "'EMPTY' cannot be read as an image"),
        ("--init BOMB/a.png", "'BOMB/a.png' cannot be read as an image"),
        ("--init /dev/zero", "'/dev/zero' cannot be read as an image"),
        ("--init IMAGES/a.png", "IMAGES/a.png is 8 x 8 pixels, and 'shapes' draws 32 x 32"),
    ],
    "check-model": [
        ("nosuch", "unknown model 'nosuch'. Allowed:"),
        ("EMPTY", "cannot load a diffusers pipeline from"),
        ("DAMAGED", "cannot load a diffusers pipeline from"),
        ("digits", "check_model tries diffusers pipelines, and 'digits' is none"),
        ("''", "unknown model ''. Allowed:"),
        ("shapes --size 0", "size must be an integer >= 1, got 0"),
        ("shapes --revision main", "revision: only of a model on the hub, and 'shapes' is none"),
        ("shapes --size 100000", "size must be at most 16,384, got 100000"),
        ("shapes --prompt 'a red circle' --prompt 'a red circle'", "give one prompt, or two that"),
        ("shapes --json FILE/x.json", "[Errno 20] Not a directory: 'FILE/x.json'"),
        ("shapes --json EMPTY", "[Errno 22] not a regular file, so that it is not replaced"),
        ("shapes --dtype int8", "unknown dtype 'int8'. Allowed: 'bfloat16',"),
        ("shapes --device foo", "unknown device 'foo'. Allowed: 'cpu', 'cuda',"),
        ("shapes --guidance-scale nan", "--guidance-scale must be finite, got nan"),
        ("shapes --argument x", "--argument must be NAME=VALUE, got 'x'"),
    ],
    "batch P.txt --out OUT": [
        ("--scale 0,x", "unknown scale 'x'."),
        ("--scale 0,,1", "unknown scale ''."),
        ("--scale 1,-1", "scale must be a finite number >= 0, got -1.0"),
        ("--scale 1,nan", "scale must be a finite number >= 0, got nan"),
        ("--also nosuch", "unknown reward 'nosuch'."),
        ("--init IMAGES/a.png", "--init: only for --method refine"),
        ("--method refine --init nosuch.png", "'nosuch.png' cannot be read as an image"),
        ("--budget 10 --particles 3", "--particles: --budget chooses them"),
        ("--seeds '²'", "--seeds must be like 0 or 0,1,7 or 0-3, at"),
        ("--seeds 0-99999999", "--seeds must be like 0 or 0,1,7 or 0-3, at"),
        ("--seeds 3-1", "--seeds must be like 0 or 0,1,7 or 0-3, at"),
        ("--seeds ''", "--seeds must be like 0 or 0,1,7 or 0-3, at"),
        ("--seeds '{BIG}'", "--seeds must be like 0 or 0,1,7 or 0-3, at"),
        ("--seeds -1", "--seeds must be like 0 or 0,1,7 or 0-3, at"),
        ("--method stering", "unknown method 'stering'. Did you mean"),
        ("--count 0", "count must be an integer >= 1, got 0"),
        ("--count x", "Invalid value for '--count': Input should be"),
        ("--category nosuch", "unknown category of P.txt 'nosuch'. Allowed:"),
        ("--workers 0", "workers must be an integer >= 1, got 0"),
        ("--workers x", "workers must be an integer >= 1, got 'x'"),
        ("--workers 10000000", "workers must be at most 1,000,000, got"),
        ("--threads 0", "threads must be an integer >= 1, got 0"),
        ("--threads x", "threads must be an integer >= 1, got 'x'"),
        ("--budget x", "a budget is a time such as 90s, 2min or 1h,"),
        ("--particles 0", "particles must be an integer >= 1, got 0"),
        ("--reward clas", "unknown reward 'clas'. Did you mean 'class'?"),
        ("--model digit", "unknown model 'digit'. Did you mean 'digits'?"),
        ("--seed 1", "No such option: --seed (Possible options:"),
    ],
    "sample --out OUT": [
        ("--class 11", "the digits are 0 to 9, got class 11"),
        ("--class x", "Invalid value for '--class': Input should be"),
        ("--count 0", "--count must be an integer >= 1, got 0"),
        ("--count '{BIG}'", "--count must be at most 10,000, got"),
        ("--count x", "Invalid value for '--count': Input should be"),
        ("--guidance-scale 2", "--guidance-scale needs --class: there is"),
        ("--guidance-scale nan --class 3", "guidance_scale must be finite, got nan"),
        ("--model flux", "unknown model 'flux'. Allowed: 'FOLDER',"),
        ("--model shapes", "`sample` draws digits; for 'shapes': align"),
        ("--transitions 0", "transitions must be an integer >= 1, got 0"),
        ("--particles 8", "No such option: --particles (Possible"),
        ("--seed -1", "seed must be an integer in [0, 2^63), got"),
    ],
    "evaluate IMAGES --out OUT": [
        ("", "nothing to measure: give rewards, features,"),
        ("--reward nosuch", "unknown reward 'nosuch'. Allowed:"),
        ("--reward :f", "a reward of your own is module:function, and"),
        ("--features vgg", "unknown features 'vgg'. Allowed: 'clip',"),
        ("--features dino", "'dino' needs a model: dino:FOLDER or"),
        ("--reward mine:f --reference IMAGES", "a reference is compared in features: give"),
        ("--reward mine:f --device foo", "unknown device 'foo'. Allowed: 'cpu', 'cuda',"),
        ("--reward mine:f --model shape", "unknown model 'shape'. Did you mean 'shapes'?"),
        ("--reward mine:f --seed -1", "seed must be an integer in [0, 2^63), got"),
    ],
    "train digits --out OUT": [
        ("--steps 0", "steps must be an integer >= 1, got 0"),
        ("--batch 0", "batch must be an integer >= 1, got 0"),
        ("--classifier-steps -1", "classifier_steps must be an integer >= 1, got"),
        ("--seed '{HUGE}'", "seed must be an integer in [0, 2^63), got"),
    ],
    "train digits-turbo --out OUT": [
        ("--times 3", "times must divide 16, got 3"),
        ("--times 32", "times must be at most 16, got 32"),
        ("--trajectories 0", "trajectories must be an integer >= 1, got 0"),
    ],
    "train shapes --out OUT": [
        ("--device foo", "unknown device 'foo'. Allowed: 'cpu', 'cuda',"),
        ("--steps -1", "steps must be an integer >= 1, got -1"),
        ("--scenes 0", "scenes must be an integer >= 1, got 0"),
        ("--start nosuch", "'nosuch' holds no Shapes pipeline"),
    ],
    "compare --out OUT": [
        ("--evaluations 7", "evaluations must be a multiple of one of (4,"),
        ("--evaluations 0", "evaluations must be an integer >= 1, got 0"),
        ("--particles 0", "particles must be an integer >= 1, got 0"),
        ("--populations 1", "populations must be an integer >= 2, got 1"),
        ("--populations -3", "populations must be an integer >= 2, got -3"),
        ("--only nosuch", "unknown method 'nosuch'. Allowed: '+ network"),
        ("--model flux", "unknown model 'flux'. Allowed: 'FOLDER',"),
        ("--model sit:EMPTY", "`compare` knows digits and shapes, which have"),
        ("--count 3", "--count: not for --model digits; leave it out"),
        ("--reward 'class:²'", "reward 'class:N' needs a digit 0 to 9, got"),
        ("--reward clip", "unknown reward 'clip'. Allowed: 'class'."),
        ("--reward judge:8", "unknown reward 'judge'. Allowed: 'class'."),
        ("--tuning-populations 0", "tuning_populations must be an integer >= 2,"),
    ],
    "compare --out OUT --model shapes": [
        ("--only x", "--only: not for --model shapes; leave it out"),
        ("--count 0", "count must be an integer >= 1, got 0"),
        ("--count -1", "count must be an integer >= 1, got -1"),
        ("--evaluations 7", "--evaluations must be a multiple of 6: 7"),
    ],
    "compare --out OUT --model shapes --prompts P.txt": [
        ("", "--prompts needs --scale"),
        ("--scale nan", "scale must be a finite number >= 0, got nan"),
        ("--scale 1 --reward clip --reward hps", "one --reward at a time with --prompts, got 2"),
        ("--scale 1 --reward nosuch", "unknown reward 'nosuch'."),
        ("--scale 1 --device foo", "unknown device 'foo'."),
    ],
    "reproduce values --out OUT": [
        ("--page FILE/x.md", "[Errno 20] Not a directory: 'FILE/x.md'"),
        ("--reward clip", "--reward: for pipelines only; the digits have"),
        ("--page x.html", "--page is a Markdown file, its name ends in"),
        ("--seed '{HUGE}'", "seed must be an integer in [0, 2^63), got"),
    ],
    "reproduce alignment --out OUT --model shapes": [
        ("--scale nan", "--scale must be finite and not negative, got"),
    ],
}  # fmt: skip

SLOW: dict[str, list[tuple[str, str]]] = {
    "align --out OUT --model shapes --prompt 'two red circles'": [
        ("--argument 'x={DEEP}'", "FluxPipeline takes no 'x'. The pipeline's"),
        ("--argument nosuch=1", "FluxPipeline takes no 'nosuch'. The"),
        ("--height 33", "height must be a multiple of 8 for"),
        ("--height 0", "height must be an integer >= 1, got 0"),
        ("--width -8", "width must be an integer >= 1, got -8"),
        ("--lora nosuch", "cannot load LoRA weights from 'nosuch' into"),
    ],
    "check-model": [
        ("shapes --size 33", "height must be a multiple of 8 for FluxPipeline, got 33"),
    ],
    "batch P.txt --out OUT": [
        ("--ray nowhere", "no Ray cluster at 'nowhere': Invalid address"),
    ],
    "": [
        ("report RUN --out EMPTY", "cannot write the report to 'EMPTY'"),
    ],
    "compare --out OUT --model shapes": [
        ("--reward nosuch", "unknown reward 'nosuch'. Allowed:"),
    ],
    "reproduce alignment --out OUT --model shapes": [
        ("--reward nosuch", "unknown reward 'nosuch'. Allowed:"),
    ],
}  # fmt: skip

CASES = [
    pytest.param(f"{start} {rest}", says, marks=marks)
    for table, marks in ((QUICK, ()), (SLOW, pytest.mark.slow))
    for start, rows in table.items()
    for rest, says in rows
]


def bomb():
    """A PNG of three thousand million pixels, in a hundred bytes."""

    def chunk(kind, data):
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"0")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with something of everything."""
    # What is slow to import is no matter of a command.
    import matplotlib.pyplot
    from transformers import CLIPModel, CLIPProcessor, CLIPTextModel, T5EncoderModel

    assert matplotlib.pyplot and CLIPModel and CLIPProcessor and CLIPTextModel and T5EncoderModel
    folder = tmp_path_factory.mktemp("home")
    texts = {
        "FILE": "x",
        "DAMAGED/model_index.json": "{",
        "mine.py": "number = 3\n\n\ndef f(z):\n    return z.mean((1, 2, 3))\n",
        "broken.py": "def f(:\n",
        "raising.py": "1 / 0\n",
        "quitting.py": "raise SystemExit\n",
        "P.txt": "8\n",
        "P.yaml": "8\n",
        "EMPTYFILE.txt": "\n",
        "deep.jsonl": GIVEN["{DEEP}"],
        "half.jsonl": '{"prompt": "\\ud83d"}\n',
        "cut.csv": "prompt\na, b\n",
        "NOIMAGE/a.png": "x",
        "BADRUN/run.json": "{",
        "DEEPRUN/run.json": GIVEN["{DEEP}"],
    }
    for name, text in texts.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    for name in ("EMPTY", "IMAGES", "BOMB"):
        (folder / name).mkdir()
    Image.new("RGB", (8, 8)).save(folder / "IMAGES" / "a.png")
    (folder / "BOMB" / "a.png").write_bytes(bomb())
    (folder / "latin.txt").write_bytes(b"8\n\xff\n")
    (folder / "LINK").symlink_to("FILE")
    ancestry = torch.zeros(0, 1, 1, dtype=torch.long)
    result = SearchResult(torch.zeros(1, 1, 2), torch.zeros(1, 1), ancestry, Costs())
    RunFolder(folder / "RUN", {"model": "digits"}).finish(result)
    return folder


def files(home):
    return {file for file in Path(home).rglob("*") if "__pycache__" not in file.parts}


@pytest.mark.parametrize(("words", "says"), CASES)
def test_bad_input_is_said_at_once(words, says, home, monkeypatch, capsys):
    argv = shlex.split(words)
    for name, value in GIVEN.items():
        argv = [word.replace(name, value) for word in argv]
    monkeypatch.chdir(home)
    monkeypatch.setattr(sys, "argv", ["glass-flows", *argv])
    for name in ("mine", "broken", "raising", "quitting"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    before, null = files(home), os.stat("/dev/null").st_mode
    start = time.process_time()
    with pytest.raises(SystemExit) as stopped:
        glass_flows.cli.main()
    spent = time.process_time() - start
    said = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert stopped.value.code == 2
    assert [line for line in said if not line.startswith("  ")] == said[:1]  # but somebody's frames
    assert said[0].startswith(f"error: {says}")
    assert len(said[0]) < 1600
    assert files(home) == before
    assert os.stat("/dev/null").st_mode == null
    assert spent < SECONDS


def test_there_are_enough_of_them():
    assert len(CASES) >= 150
