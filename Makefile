# make demo    pretrain NNCLR on real digits and evaluate it           (CPU, minutes, nothing downloaded)
# make test    lint, types and the fast tests, in two processes
# make test-slow, make coverage
# make prove   every method on 1, 2 and 3 processes: how far loss, gradient and parameters are apart
# make torture kill, stop, starve and damage small runs; TORTURE="--full", "--minutes 30 --seed 1" and others
# make bench   speed and memory compared with torchvision, Lightly, DALI and faiss; PHOTOGRAPHS=FOLDER and CIFAR=FOLDER for all rows
# make results    draw the tables of results in README and docs from the ledger; reproduce TABLE=methods ROW=simclr-s0 runs a row again

PYTHON ?= python3
VENV   ?= .venv
PY     := $(VENV)/bin/python
RUN    := demo-$(shell date +%Y%m%d-%H%M%S)

.PHONY: demo test prove torture lint test-slow coverage bench results reproduce clean
.NOTPARALLEL:
.DELETE_ON_ERROR:

$(PY):
	$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 10) else f"Lookalike needs Python 3.10 or newer, this is {v[0]}.{v[1]}; try: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: requirements.txt requirements.lock | $(PY)
	$(PY) -m pip install --disable-pip-version-check -q -r requirements.txt -c requirements.lock
	@touch $@

$(VENV)/.installed-dev: requirements-dev.txt requirements-onnx.txt requirements-umap.txt requirements-faiss.txt requirements-dali.txt requirements-parquet.txt requirements-tensorboard.txt requirements-datasets.txt requirements-heif.txt $(VENV)/.installed
	$(PY) -m pip install --disable-pip-version-check -q -r requirements-dev.txt -c requirements.lock
	@touch $@

$(VENV)/.installed-bench: requirements-bench.txt $(VENV)/.installed-dev
	$(PY) -m pip install --disable-pip-version-check -q -r requirements-bench.txt -c requirements.lock
	@touch $@

demo: $(VENV)/.installed
	$(PY) main_contrastive.py digits resnet18 --method nnclr --stem imagenet --precision 32 \
	    --epochs 20 --batch_size 128 --optimizer adamw --lr 0.002 --weight_decay 0.01 \
	    --temperature 0.2 --queue_size 512 --hidden_mlp 512 --proj_dim 128 --no_predictor \
	    --knn_every 10 --run_id $(RUN)
	$(PY) main_linear.py digits resnet18 --pretrained_feature_extractor trained_models/$(RUN) \
	    --evaluation logistic knn fewshot --shots 5 --draws 20 --baselines --run_id $(RUN)-evaluated
	@echo "pictures: curves.png, neighbours.png and embedding.png in trained_models/$(RUN)"

lint: $(VENV)/.installed-dev
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy .

test: lint
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

coverage: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder --cov --cov-report=term

prove: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(PY) -m tests.prove

torture: $(VENV)/.installed-dev
	$(PY) -m tests.torture $(TORTURE)

test-slow: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(PY) -m pytest -m slow

bench: $(VENV)/.installed-bench
	$(PY) -m bench $(if $(PHOTOGRAPHS),--photographs "$(PHOTOGRAPHS)") $(if $(CIFAR),--cifar "$(CIFAR)")

results: $(VENV)/.installed
	$(PY) -m results draw

reproduce: $(VENV)/.installed
	$(PY) -m results reproduce $(TABLE) $(ROW)

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache .hypothesis
