"""What users get wrong: one line on stderr that says what to do, status 2, no traceback, and nothing written."""

from __future__ import annotations

import os
import pickle
import re
import shutil
import struct
import subprocess
import sys
import zipfile
from pathlib import Path, PurePosixPath

import pytest
import torch

from mlp_lab.cli.main import COMMANDS
from tests.cli.conftest import Bench, write_config, write_table
from tests.slow import slow_but

FIT = "fit --config good.yaml"
MNIST = "fit --config mnist.yaml"

# words of the command line -> the whole line; … stands for anything
MISTAKES = {
    # commands and flags
    "trainn": f"'trainn' is not a command (accepted: {', '.join(COMMANDS)})",
    "pedict": f"'pedict' is not a command; did you mean 'predict'? (accepted: {', '.join(COMMANDS)})",
    f"{FIT} extra": "extra: unexpected word; keys begin with --",
    f"{FIT} --model.depth": "model.depth: no value is given",
    f"{FIT} --data.path t.csv --data.target": "data.target: no value is given",
    f"{FIT} --data.target --data.path t.csv": "data.target: no value is given",
    f"{FIT} --model.dept 4": "model.dept: no such key; did you mean model.depth?",
    f"{FIT} --lr 0.1": "lr: no such key; did you mean model.optimizer.lr?",
    f"{FIT} --qqq 1": "qqq: no such key; `fit --help` lists the keys",
    f"{FIT} --model.optimizer.lrr 1": "model.optimizer.lrr: no such key; did you mean model.optimizer.lr?",
    f"{FIT} --data.batchsize 8": "data.batchsize: no such key of TabularDataModule; did you mean data.batch_size?",
    f"{FIT} --data.augment.rotation 3": "data.augment.rotation: no such key of TabularDataModule; accepted: …",
    f"{FIT} --trainer.max_epoch 1": "trainer.max_epoch: no such key; did you mean trainer.max_epochs?",
    f"{FIT} --run run": "--run: fit has no such flag; go on with a run by --resume RUN_DIR",
    "test --resume run": "--resume: test has no such flag; name a run by --run RUN_DIR",
    # config files
    "fit --config": "--config: give a YAML file, such as configs/digits.yaml",
    "fit --config goood.yaml": "--config: there is no file goood.yaml (did you mean good.yaml?)",
    "fit --config .": "--config: . is a directory; give a YAML file",
    "fit --config empty.yaml": "--config: empty.yaml is empty; it should hold keys such as `model:`",
    "fit --config words.yaml": "--config: words.yaml holds no keys; it should begin with one such as `model:`",
    "fit --config broken.yaml": "--config: broken.yaml, line 3 is not YAML: …",
    "fit --config twice.yaml": "--config: twice.yaml, line 3 is not YAML: the key 'model' is repeated",
    "fit --config latin.yaml": "--config: latin.yaml is not UTF-8 text (byte 7)",
    "fit --config section.yaml": "modle.depth: no such key; did you mean model.depth?",
    "fit --config nested.yaml": "model.optimizer.lrr: no such key; did you mean model.optimizer.lr?",
    "fit --config scalar.yaml": "trainer: 3 in scalar.yaml is not a group of keys; write them below it, indented",
    "fit --config null.yaml": "model: it has no keys in null.yaml; write them below it, indented, or leave it out",
    "fit --config class.yaml": "data: 'TabluarDataModule' is not a class that can be used here; use MNISTDataModule, "
    "TabularDataModule or the dotted path of your own",
    "fit --config option.yaml": "data.droop: no such key of TabularDataModule; did you mean data.drop?",
    "fit --config no.yaml": "data.target: YAML reads no, yes, on and off as booleans; … --data.target '[\"no\"]'",
    "fit --config nos.yaml": "data.drop: YAML reads no, yes, on and off as booleans; … --data.drop '[\"no\", c]'",
    # types
    f"{FIT} --model.depth abc": "model.depth: 'abc' is not accepted; use an integer or null",
    f"{FIT} --model.depth 2.5": "model.depth: 2.5 is not accepted; use an integer or null",
    f"{FIT} --model.width [a,b]": "model.width: ['a', 'b'] is not accepted; use an integer or a list of integers",
    f"{FIT} --model.optimizer.lr fast": "model.optimizer.lr: 'fast' is not accepted; use a number",
    f"{FIT} --model.optimizer adam": "model.optimizer: 'adam' is not accepted; it is a group of keys, such as "
    "model.optimizer.name",
    f"{FIT} --model.spec {{}}": "model.spec: it is taken from the data; leave it out",
    f"{FIT} --data.drop [2020,c]": "data.drop: YAML reads 2020 as a number; … or --data.drop '[\"2020\", c]'",
    f"{FIT} --data.drop c,q": "data.drop: table.csv has no column 'c,q'; it has a, b, c, y",
    f"{FIT} --data.drop b,c": "data.drop: table.csv has no column 'b,c' (did you mean --data.drop '[b, c]'?); it has …",
    f"{FIT} --data.split_column [b,c]": "data.split_column: ['b', 'c'] are 2 columns; name one",
    f"{FIT} --diagnostics.groups 7": "diagnostics.groups: …",
    f"{FIT} --data.batch_size many": "data.batch_size: 'many' is not accepted; use an integer",
    f"{FIT} --seed_everything abc": "seed_everything: 'abc' is not accepted; use true or false or an integer",
    f"{FIT} --seed_everything -3": "seed_everything: -3 is not a seed; accepted: 0 to 4294967295",
    f"{FIT} --trainer.precision 16-true": "model.optimizer.eps: 1e-08 is 0 in float16, the type of all weights under …",
    f"{FIT} --trainer.precision 16-true --replicates 2": "model.optimizer.eps: 1e-08 is 0 in float16, …; use "
    "--model.optimizer.eps 1e-4, or --trainer.precision bf16-mixed",
    f"{FIT} --trainer.precision 17": "trainer.precision: 17 is not accepted; use 64, 32, 16, …16-mixed, … or null",
    f"{FIT} --trainer.logger board": "trainer.logger: 'board' is not a class that can be used here; use a class …",
    "fit --data.help=Foo": "data.help: 'Foo' is not a class that can be used here; use MNISTDataModule, "
    "TabularDataModule or the dotted path of your own",
    # model
    f"{FIT} --model.depth -1": "model.depth: -1 is not a number of hidden layers; accepted: an integer of at least 0",
    f"{FIT} --model.depth 2 --model.width [1,2,3]": "model.width: [1, 2, 3] has 3 entries, but model.depth: 2 …",
    f"{FIT} --model.bias 1 --model.linear_bias false": "model.bias: 1.0 sets the biases of the hidden layers, and "
    "model.linear_bias: false leaves them out; use one of the two",
    f"{FIT} --model.init critical --model.activation gelu --model.linear_bias false": "model.init: 'critical' needs …",
    f"{FIT} --model.width 0": "model.width: 0 is not a number of units; accepted: integers of at least 1",
    f"{FIT} --model.activation rellu": "model.activation: 'rellu' is unknown (did you mean 'relu'?); accepted: …",
    f"{FIT} --model.activation nowhere.phi": "model.activation: 'nowhere.phi' cannot be imported (…); accepted: …",
    f"{FIT} --model.activation torch.nn.functional.softmax": "model.activation: 'torch.nn.functional.softmax' is not …",
    f"{FIT} --model.norm bacth": "model.norm: 'bacth' is unknown (did you mean 'batch'?); accepted: none, batch, …",
    f"{FIT} --model.init hee": "model.init: 'hee' is unknown (did you mean 'he'?); accepted: …",
    f"{FIT} --model.init critical --model.activation softplus": "model.init: 'critical' has no fixed point for …",
    f"{FIT} --model.dropout 2": "model.dropout: 2.0 is not a probability; accepted: at least 0 and below 1",
    "fit --config template.yaml": "--config: template.yaml, line 1 is not YAML: a key cannot be a group or …",
    "fit --config digits.yaml": "--config: digits.yaml, line 1 is not YAML: '999…'… cannot be read as int",
    "fit --config deep.yaml": "--config: deep.yaml, line 1 is not YAML: it is nested more than 100 levels deep",
    "fit --config bomb.yaml": "--config: bomb.yaml, line 7 is not YAML: its aliases stand for more than 1,000,000 …",
    "fit --config itself.yaml": "--config: itself.yaml, line 1 is not YAML: an alias stands inside its own anchor",
    f"{FIT} --model.width {'[' * 3000}": "[[…: it is nested more than 100 levels deep",
    f"{FIT} --data.path=": "data.path: its value is empty; give a name, or leave the key out",
    f"{FIT} --run.dir=": "run.dir: its value is empty; give a name, or leave the key out",
    f"{FIT} --data.path -x.csv": "data.path: -x.csv does not exist …",
    f"{FIT} --model.depth 10001": "model.depth: 10001 hidden layers are too many; accepted: at most 10,000",
    f"{FIT} --model.depth=": "model.depth: its value is empty; give an integer or null, or leave the key out",
    f"{FIT} --model.optimizer.lr=": "model.optimizer.lr: its value is empty; give a number, or leave the key out",
    f"{FIT} --model.width {10**400}": "model.width: 1000000000… (401 digits) is too large; use an integer of at most …",
    f"{FIT} --model.width {2**62}": "out of memory: Storage size calculation overflowed …; lower data.batch_size, …",
    f"{FIT} --model.mixup .inf": "model.mixup: inf is not accepted; use a finite number",
    f"{FIT} --checkpoint.every_minutes .nan": "checkpoint.every_minutes: nan is not accepted; use a finite number",
    f"{FIT} --early_stopping.min_delta .inf": "early_stopping.min_delta: inf is not accepted; use a finite number",
    f"{FIT} --trainer.gradient_clip_val .nan": "trainer.gradient_clip_val: nan is not accepted; use a finite number",
    f"{FIT} --seed_everything {2**64}": "seed_everything: 18446744073709551616 is not a seed; accepted: 0 to …",
    f"{FIT} --seed_everything {2**32 - 1} --replicates 3": "seed_everything: 4294967295 leaves no seeds for 3 "
    "replicates; use 4294967293 at most",
    f"{FIT} --replicates 10001": "replicates: 10001 is not accepted; use 10,000 at most",
    f"{FIT} --model.loss hinge": "model.loss: 'hinge' is unknown; accepted: auto, …",
    f"{FIT} --model.loss mse": "model.loss: 'mse' does not fit the binary task: …; accepted: auto, bce, brier",
    f"{FIT} --model.label_smoothing 1": "model.label_smoothing: 1.0 is out of range; accepted: at least 0 and below 1",
    f"{FIT} --model.class_weights [1,2,3]": "model.class_weights: [1.0, 2.0, 3.0] has 3 weights for 2 classes …",
    f"{FIT} --model.encoder.numeric plrr": "model.encoder.numeric: 'plrr' is unknown (did you mean 'plr'?); …",
    f"{FIT} --model.encoder.numeric piecewise_linear": "model.encoder.numeric: 'piecewise_linear' needs bin edges, …",
    # training
    f"{FIT} --model.optimizer.name adma": "model.optimizer.name: 'adma' is unknown (did you mean 'adam'?); …",
    f"{FIT} --model.optimizer.lr -1": "model.optimizer.lr: -1.0 is out of range; accepted: a finite number > 0",
    f"{FIT} --model.optimizer.momentum 0.9": "model.optimizer.momentum: 0.9 has no effect on 'adam'; it belongs to …",
    f"{FIT} --model.optimizer.name muon --model.depth 0": "model.optimizer.name: 'muon' updates hidden matrices and …",
    f"{FIT} --model.schedule.name cosin": "model.schedule.name: 'cosin' is unknown (did you mean 'cosine'?); …",
    f"{FIT} --trainer.max_epochs -5": "trainer: `max_epochs` must be a non-negative integer or -1",
    f"{FIT} --trainer.max_epochs 0": "trainer.max_epochs: 0 trains nothing; use 1 or more",
    f"{FIT} --trainer.limit_train_batches 0": "trainer.limit_train_batches: 0 trains nothing; use 1 or more",
    f"{FIT} --trainer.log_every_n_steps 0": "trainer.log_every_n_steps: 0 is not a number of steps; use 1 or more",
    f"{FIT} --trainer.accumulate_grad_batches 0": "trainer.accumulate_grad_batches: 0 is no number; use 1 or more",
    f"{FIT} --trainer.val_check_interval 100": "trainer.val_check_interval: 100 is more than the 6 batches of an …",
    f"{FIT} --trainer.gradient_clip_val -1": "trainer.gradient_clip_val: -1 is negative; use a positive norm, or null",
    f"{FIT} --trainer.accelerator quantum": "trainer: You selected an invalid accelerator name: …",
    f"{FIT} --trainer.devices 0": "trainer: `Trainer(devices='0')` value is not a valid input using cpu accelerator",
    f"{FIT} --trainer.enable_checkpointing false": "trainer.enable_checkpointing: false leaves no record of a run; …",
    f"{FIT} --trainer.barebones true": "trainer.barebones: true leaves no record of a run; leave the key out",
    f"{FIT} --early_stopping.patience -1": "early_stopping.patience: -1 is negative; use 0 or more",
    f"{FIT} --early_stopping.monitor val/acuracy": "early_stopping.monitor: 'val/acuracy' is unknown (did you mean …",
    f"{FIT} --checkpoint.every_minutes -1": "checkpoint.every_minutes: -1.0 is negative; use 0 (off) or more",
    f"{FIT} --model.norm batch --data.batch_size 47": "data.batch_size: 47 leaves 48 rows a last batch of one row, …",
    f"{FIT} --model.norm batch --data.batch_size 1": "data.batch_size: 1 gives batches of one row, which model.norm: …",
    # Lightning's own parts
    f"{FIT} --trainer.precision transformer-engine": "trainer: the package transformer_engine is not installed; …",
    f"{FIT} --trainer.accelerator tpu": "trainer: the package torch_xla is not installed; install it with: pip …",
    f"{FIT} --trainer.strategy ddp_spawn": "trainer.strategy: it trains in processes that leave their record behind …",
    f"{FIT} --trainer.logger MLFlowLogger": "trainer.logger: MLFlowLogger: the package mlflow is not installed; …",
    f"{FIT} --trainer.profiler passthrough": "trainer: When passing string value for the `profiler` parameter of …",
    f"{FIT} --trainer.callbacks+=BaseFinetuning": "trainer.callbacks: BaseFinetuning: NotImplementedError",
    f"{FIT} --trainer.callbacks+=BackboneFinetuning": "trainer.callbacks: BackboneFinetuning: …no attribute 'backbone'",
    f"{FIT} --trainer.callbacks+=BatchSizeFinder": "trainer.callbacks: BatchSizeFinder takes the largest batch that …",
    f"{FIT} --trainer.callbacks+=EarlyStopping": "trainer.callbacks: the following arguments are required: monitor",
    f"{FIT} --trainer.callbacks+=EarlyStopping --trainer.callbacks.monitor val/los": "trainer.callbacks.monitor "
    "(EarlyStopping): 'val/los' is unknown (did you mean 'val/loss'?); accepted: val/loss, …",
    f"{FIT} --trainer.callbacks+=EarlyStopping --trainer.callbacks.monitor val/loss --trainer.callbacks.mode up": "tra"
    "iner.callbacks: EarlyStopping: `mode` can be min, max, got up",
    f"{FIT} --trainer.callbacks+=LearningRateMonitor --trainer.callbacks.logging_interval week": "trainer.callbacks.log"
    "ging_interval: 'week' is not accepted; use step, epoch or null",
    # tables
    f"{FIT} --data.path $NO_SUCH_VARIABLE/a.csv": "data.path: '$NO_SUCH_VARIABLE/a.csv' names the environment variable "
    "NO_SUCH_VARIABLE, which is not set",
    f"{FIT} --data.path none.csv": "data.path: none.csv does not exist …",
    f"{FIT} --data.path .": "data.path: . is a directory; give one table file (…)",
    f"{FIT} --data.path sheet.xlsx": "data.path: sheet.xlsx is of an unknown type; accepted: .csv, …",
    f"{FIT} --data.path empty.csv": "data.path: empty.csv is empty",
    f"{FIT} --data.path header.csv": "data.path: header.csv has no rows below its header",
    f"{FIT} --data.path numbers.csv": "data.path: numbers.csv has no header: its first line (1,2,3) holds only numbers",
    f"{FIT} --data.path long.csv": "data.path: long.csv has a broken row: line 8 has 5 cells where the header (a, b, …",
    f"{FIT} --data.path short.csv": "data.path: short.csv has a broken row: line 8 has 2 cells where the header has 4",
    f"{FIT} --data.path latin.csv": "data.path: latin.csv is not UTF-8 text, first in line 2; save it as UTF-8…",
    f"{FIT} --data.path book.csv": "data.path: book.csv is an Excel workbook or another ZIP file; save the sheet as …",
    f"{FIT} --data.path title.csv": "data.path: title.csv has a broken row: line 3 has 3 cells where the header (T) …",
    f"{FIT} --data.path only.csv": "data.path: only.csv has no column to predict y from",
    f"{FIT} --data.path cut.csv.gz": "data.path: cut.csv.gz cannot be unpacked or read (…); is it complete?",
    f"{FIT} --data.path bad.parquet": "data.path: bad.parquet is not a readable Parquet file (…)",
    f"{FIT} --data.path same.csv": "data.path: same.csv has 1 duplicate column name(s): 'a'",
    f"{FIT} --data.path blank.csv": "data.path: blank.csv has no value in column(s) 'a' …--data.drop '[a]'",
    f"{FIT} --data.path inf.csv": "data.path: inf.csv, column 'a', line 4: inf is infinite; only finite numbers train",
    f"{FIT} --data.path text.csv --data.numeric [a]": "data.path: text.csv, column 'a', line 4: 'seven' is not a …",
    f"{FIT} --data.decimal ;": "data.decimal: ';' is not accepted; use one of '.', ','",
    f"{FIT} --data.thousands .": "data.thousands: '.' is the decimal character too; set data.decimal ','",
    f"{FIT} --data.date_format DD.MM.YYYY": "data.date_format: 'DD.MM.YYYY' is not a date format; use for example …",
    f"{FIT} --data.task regression --data.categorical [y]": "data.categorical: 'y' is the target of a regression; …",
    f"{FIT} --data.target q": "data.target: table.csv has no column 'q'; it has a, b, c, y",
    f"{FIT} --data.drop [q]": "data.drop: table.csv has no column 'q'; it has a, b, c, y",
    f"{FIT} --data.path constant.csv": "data.target: 'y' is yes in every training row; there is nothing to predict",
    f"{FIT} --data.path lonely.csv": "data.split: class 'maybe' has one row, which cannot be both trained on and …",
    f"{FIT} --data.path gap.csv": "data.target: 'y' is missing in 1 of 60 rows, first in line 4 of gap.csv; fill …",
    f"{FIT} --data.task regresion": "data.task: 'regresion' is unknown (did you mean 'regression'?); accepted: …",
    f"{FIT} --data.task regression": "data.target: table.csv, column 'y', line 2: 'yes' is not a number; …",
    f"{FIT} --data.scaling std": "data.scaling: 'std' is unknown; accepted: standard, …",
    f"{FIT} --data.split [0.5,0.1,0.1]": "data.split: [0.5, 0.1, 0.1] sums to 0.7, not to 1",
    f"{FIT} --data.split 0.8,0.1,0.1": "data.split: '0.8,0.1,0.1' is not accepted; use a list of numbers or null",
    f"{FIT} --data.split [1,0,0]": "data: no validation rows; give them a share of the split, or set …",
    f"{FIT} --data.split_column c": "data.split_column: 'c' has 'x' in line 2 of table.csv; accepted: train, …",
    f"{FIT} --data.path parts.csv --data.split_column c": "data.split_column: 'c' has no validation rows; mark some …",
    f"{FIT} --data.batch_size 0": "data.batch_size: 0 must be 1 or more",
    f"{FIT} --data.train_rows 0": "data.train_rows: 0 must be 1 or more",
    f"{FIT} --data.train_rows 1": "data.train_rows: 1 is fewer than the 2 classes; use at least 2",
    f"{FIT} --data.train_rows 49": "data.train_rows: 49 is more than the 48 training rows; use at most 48, …",
    f"{FIT} --data.train_rows half": "data.train_rows: 'half' is not accepted; use an integer or null",
    f"{FIT} --data.path two.zip": "data.path: two.zip holds 2 tables (a.csv, b.csv); give one file of .csv, …",
    f"{FIT} --data.dataset digits": "data.dataset: 'digits' and data.path: 'table.csv' are both given; leave one out",
    "fit --data.dataset digit": "data.dataset: 'digit' is unknown (did you mean 'digits'?); accepted: digits, …",
    "fit --data.path table.csv": "data.target: name the column of table.csv to predict, such as --data.target y; …",
    "fit --data.dataset adult --data.root nodata": "data.dataset: 'adult' is not at nodata/tabular/adult.csv and …; "
    "put the file there as CSV with a column 'income', or set data.root",
    # images
    f"{MNIST} --data.root nodata": "data.root: 'nodata' has no MNIST; download failed (no network); put "
    "train-images-idx3-ubyte, … (or the same with .gz) into nodata/MNIST/raw",
    f"{MNIST} --data.root cut": "data.root: cut/MNIST/raw/train-images-idx3-ubyte is truncated: expected 7856 bytes, …",
    f"{MNIST} --data.dataset mnits": "data.dataset: 'mnits' is not accepted; use mnist, fashion, …",
    f"{MNIST} --data.train_rows 0": "data.train_rows: 0 must be 1 or more",
    f"{MNIST} --data.val_fraction 1": "data.val_fraction: 1.0 is outside 0 to below 1",
    f"{MNIST} --data.augment.rotation far": "data.augment.rotation: 'far' is not accepted; use a number",
    f"{MNIST} --data.augment.rotation -3": "data.augment.rotation: -3.0 is outside 0 to 180",
    f"{MNIST} --data.augment.rotatoin 3": "data.augment.rotatoin: no such key of MNISTDataModule; did you mean "
    "data.augment.rotation?",
    f"{MNIST} --data.augment 3": "data.augment: '3' is not accepted; it is a group of keys, such as …",
    # runs and checkpoints
    f"{FIT} --run.name a/b": "run.name: 'a/b' cannot name a folder; use letters, digits, '-', '_', '+' and '.'",
    f"{FIT} --run.threads 0": "run.threads: 0 computes nothing; use 1 or more, or auto",
    f"{FIT} --run.threads many": "run.threads: 'many' is not accepted; use an integer or auto",
    f"{FIT} --run.dir run": "run.dir: run already holds a run; name another, or go on with `python -m …`",
    f"{FIT} --run.dir table.csv/run": "run.dir: …/table.csv/run cannot be written (Not a directory); name a writable …",
    f"{FIT} --run.dir /proc/run": "run.dir: /proc/run cannot be written (…); name a writable directory",
    "test": "--run: name the run to test, such as runs/digits/latest (or --config and --ckpt_path)",
    "predict --config good.yaml": "--run: name the run to predict, such as runs/digits/latest (or --config and …",
    "test --run": "--run: give the directory of a run, such as runs/digits/latest",
    "test --run nowhere": "--run: there is no directory nowhere; give a directory that `fit` wrote",
    "test --run .": "--run: . holds no run (no config.yaml); give a directory that `fit` wrote",
    "test --run run --run other": "--run: run and other are both given; name one run",
    "fit --resume nowhere": "--resume: there is no directory nowhere; give a directory that `fit` wrote",
    "test --run young": "--run: …/young holds no checkpoint yet; go on with `python -m mlp_lab fit --resume …/young`",
    "test --run torn": "ckpt_path: …/torn/checkpoints/best.ckpt is not a checkpoint, or not a whole one; use one …",
    "fit --resume torn": "ckpt_path: …/torn/checkpoints/last.ckpt is not a checkpoint, or not a whole one; use …",
    "test --run listed": "--run: …/listed/provenance.json is damaged (it is no record of a run); restore it, or …",
    "fit --resume binary --trainer.max_epochs 2": "…/binary/metrics.csv is damaged (…); restore it, or delete it",
    "test --run damaged": "--run: …/damaged/provenance.json is damaged (…); restore it, or delete it",
    "test --run run --ckpt_path none.ckpt": "ckpt_path: there is no file none.ckpt; give a checkpoint such as …",
    "test --run run --ckpt_path table.csv": "ckpt_path: table.csv is not a checkpoint, or not a whole one; use one …",
    "test --run run --ckpt_path tensor.ckpt": "ckpt_path: tensor.ckpt is not a checkpoint, or not a whole one; use …",
    "test --run run --ckpt_path object.ckpt": "ckpt_path: object.ckpt is not a checkpoint, or not a whole one; use …",
    "test --run run --ckpt_path pickled.ckpt": "ckpt_path: pickled.ckpt is not a checkpoint, or not a whole one; use …",
    "test --run run --model.width 7": "model.width: 7 is not what the checkpoint was trained with (8); use the …",
    "test --run run --model.activation tanh": "model.activation: tanh is not what the checkpoint was trained …",
    "fit --resume run --model.width 7": "model.width: 7 cannot replace 8 in a run that goes on; leave it out, or …",
    "fit --resume run --model.depth 2": "model.depth: 2 cannot replace 1 in a run that goes on; leave it out, or …",
    "fit --resume run --trainer.max_epochs 2 --data.path other.csv": "data: its fingerprint is …; resume on …",
    "predict --run run --data.path lacking.csv": "data.path: lacking.csv lacks column(s) 'b', which the model was …",
    "predict --run run --data.path text.csv": "data.path: text.csv, column 'a', line 4: 'seven' is not a number; …",
    "predict --run run --data.path none.csv": "data.path: none.csv does not exist …",
    "test --run run --data.path new.csv": "data.target: new.csv has no column 'y'; without it only predict works",
    "predict --run run --data.path huge.csv": "data.path: huge.csv, column 'a', line 4: 1e+300 is too large …",
    "predict --run run --id q": "id: the table has no column 'q'; it has a, b, c, y",
    "predict --run run --id false": "id: …",
    "predict --run run --output .": "output: . is a directory; name a file in it, such as predictions.csv",
    "predict --run run --output p.parquet": "output: p.parquet is not the name of a .csv file; use p.csv",
    "predict --run run --output p.csv.gz": "output: p.csv.gz is not the name of a .csv file; use p.csv",
    "predict --run run --output no/p.csv": "output: there is no directory …/no",
    "predict --run run --output table.csv --data.path table.csv": "output: …/table.csv is the table itself; name …",
    "predict --run run --output run/metrics.csv": "output: run/metrics.csv is a file of the run in …/run; name …",
    "test --run run --output run/provenance.json": "output: run/provenance.json is a file of the run in …/run; name …",
    "test --run run --data.path more.csv --output run/test.json": "output: run/test.json is a file of the run in …",
    "test --run run --run.dir damaged": "run.dir: damaged holds another run; name another directory, or a file with …",
    "test --run run --run.dir table.csv/x": "run.dir: table.csv/x cannot be made (Not a directory); name a writable …",
    "validate --run run --output x.json": "output: no such key; …",
    "predict --run run --trainer.devices 2": "trainer.devices: 2 processes cannot predict; use --trainer.devices 1",
}


def write_configs(folder: Path) -> None:
    write_config(folder / "good.yaml")
    texts = {
        "empty": "# nothing\n",
        "words": "just words\n",
        "broken": "model:\n  width: [1,\n  depth: }\n",
        "twice": "model: {depth: 2}\ntrainer: {max_epochs: 1}\nmodel: {width: 3}\n",
        "section": "modle:\n  depth: 3\n",
        "nested": "model:\n  optimizer:\n    lrr: 3\n",
        "scalar": "trainer: 3\n",
        "null": "run: {name: a}\nmodel:\n",
        "class": "data:\n  class_path: TabluarDataModule\n",
        "option": "data:\n  class_path: TabularDataModule\n  init_args: {droop: [a]}\n",
        "no": "data:\n  class_path: TabularDataModule\n  init_args: {path: table.csv, target: no}\n",
        "nos": "data:\n  class_path: TabularDataModule\n  init_args: {path: table.csv, target: y, drop: [no, c]}\n",
        "template": "model: {depth: {{ depth }}}\n",
        "digits": f"model: {{width: {'9' * 5000}}}\n",
        "deep": f"run: {'[' * 3000}\n",
        "bomb": "a0: &a0 [1]\n" + "".join(f"a{n}: &a{n} [{f'*a{n - 1}, ' * 9}]\n" for n in range(1, 30)),
        "itself": "run: &r {name: *r}\n",
        "mnist": "data:\n  class_path: MNISTDataModule\ntrainer: {max_epochs: 1}\n",
    }
    for name, text in texts.items():
        (folder / f"{name}.yaml").write_text(text)
    (folder / "latin.yaml").write_bytes(b"run: {\n\xe9}")


def write_tables(folder: Path) -> None:
    write_table(folder / "table.csv", row1="1.5,1.0,x,yes")
    write_table(folder / "other.csv", rows=70)
    write_table(folder / "long.csv", row7="1,2,x,yes,5")
    write_table(folder / "short.csv", row7="1,2")
    write_table(folder / "same.csv", header="a,a,c,y")
    write_table(folder / "inf.csv", row3="inf,2,x,yes")
    write_table(folder / "text.csv", row3="seven,2,x,yes")
    write_table(folder / "huge.csv", row3="1e300,2,x,yes")
    write_table(folder / "more.csv", rows=10)
    write_table(folder / "gap.csv", row3="1,2,x,")
    write_table(folder / "lonely.csv", row3="1,2,x,maybe")
    lines = write_table(folder / "constant.csv").read_text().splitlines()
    every = {"constant": lambda row: f"{row.rpartition(',')[0]},yes", "blank": lambda row: f",{row.partition(',')[2]}"}
    every["parts"] = lambda row: re.sub(r",[xy],", ",train,", row).replace(",z,", ",test,")
    for name, change in every.items():
        (folder / f"{name}.csv").write_text("\n".join([lines[0], *map(change, lines[1:])]) + "\n")
    texts = {
        "empty": "",
        "header": "a,b,y\n",
        "numbers": "1,2,3\n4,5,6\n",
        "lacking": "a,c\n1,x\n",
        "title": "T\n\na,b,y\n1,2,x\n",
        "only": "y\n" + "yes\nno\n" * 10,
        "new": "a,b,c\n1,2,x\n",
    }
    for name, text in texts.items():
        (folder / f"{name}.csv").write_text(text)
    (folder / "latin.csv").write_bytes(b"a,b,y\n1,2,\xe9\n")
    with zipfile.ZipFile(folder / "two.zip", "w") as archive:
        for name in ("a.csv", "b.csv"):
            archive.writestr(name, "a,y\n1,2\n")
    (folder / "book.csv").write_bytes(b"PK\x03\x04\xff")
    for name in ("sheet.xlsx", "bad.parquet", "cut.csv.gz"):
        (folder / name).write_bytes(b"no such format")


def write_runs(folder: Path, finished_run: Path) -> None:
    for name in ("run", "torn", "damaged", "young", "listed", "binary"):
        shutil.copytree(finished_run, folder / name)
    for name in ("best", "last"):
        whole = (finished_run / "checkpoints" / f"{name}.ckpt").read_bytes()
        (folder / "torn" / "checkpoints" / f"{name}.ckpt").write_bytes(whole[: len(whole) // 2])
    (folder / "damaged" / "provenance.json").write_text("{")
    (folder / "listed" / "provenance.json").write_text("[]")
    (folder / "binary" / "metrics.csv").write_bytes(b"step,epoch\n\xff\x00")
    shutil.rmtree(folder / "young" / "checkpoints")
    torch.save(torch.zeros(3), folder / "tensor.ckpt")
    torch.save({"hyper_parameters": {}, "path": PurePosixPath("x")}, folder / "object.ckpt")
    (folder / "pickled.ckpt").write_bytes(pickle.dumps({"hyper_parameters": {}}))


def write_truncated_images(folder: Path) -> None:
    """Writes four IDX files of ten images, the first of them cut short."""
    folder.mkdir(parents=True)
    for name in ("train", "t10k"):
        pixels = struct.pack(">IIII", 0x803, 10, 28, 28) + bytes(10 * 784)
        (folder / f"{name}-images-idx3-ubyte").write_bytes(pixels if name == "t10k" else pixels[:5000])
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, 10) + bytes(range(10)))


def no_network(*arguments: object, **options: object) -> None:
    raise OSError("no network")


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory, finished_run: Path) -> Path:
    folder = tmp_path_factory.mktemp("workshop")
    write_configs(folder)
    write_tables(folder)
    write_runs(folder, finished_run)
    write_truncated_images(folder / "cut" / "MNIST" / "raw")
    return folder


def snapshot(folder: Path) -> dict[Path, bytes]:
    """Returns the content of every file; a folder's is empty."""
    return {path: path.read_bytes() if path.is_file() else b"" for path in folder.rglob("*")}


@pytest.mark.parametrize("words", MISTAKES)
def test_mistake_is_told_in_one_line_and_writes_nothing(
    words: str, workshop: Path, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workshop)
    monkeypatch.setattr("mlp_lab.data.image_sources.download_with_torchvision", no_network)
    monkeypatch.setattr("sklearn.datasets.fetch_openml", no_network)
    before = snapshot(workshop)
    answer = bench(*words.split())
    pattern = re.escape(f"error: {MISTAKES[words]}").replace("…", ".*") + r"\n"
    assert re.fullmatch(pattern, answer.err), answer.err
    assert answer.status == 2
    after = snapshot(workshop)
    new = {path.relative_to(workshop).parts[0] for path in after.keys() - before.keys()}
    assert new <= {"nodata"}  # the folder of data that a download would have filled
    assert {path: after[path] for path in before} == before


def test_there_are_more_mistakes_than_asked_for() -> None:
    assert len(MISTAKES) >= 100


@pytest.mark.parametrize("words", slow_but(["trainn", "test --run nowhere", "fit --data.path empty.csv"], "trainn"))
def test_shell_sees_status_and_one_line(words: str, workshop: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-m", "mlp_lab", *words.split()]
    done = subprocess.run(command, cwd=workshop, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stdout == ""
    assert re.fullmatch(r"error: .+\n", done.stderr)


def test_debugging_shows_the_traceback(bench: Bench, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLP_LAB_DEBUG", "1")
    with pytest.raises(ValueError, match="no such key"):
        bench("fit", "--model.dept", "3")
