# Pictures of the README and docs/, from the shipped model's full grid (40 minutes on two cores; a run that is there is not repeated).
# make figures BROWSER=chromium-browser
BROWSER ?= chromium
DATA := $(or $(LOG_DIR),data)/fashion_mnist
GRID := $(DATA)/vtiny_1trials_1keep_250samples_l1_64
VALID := $(DATA)_validation/vtiny_1trials_race_0.2alpha_2min_1round_250max_l1_64
RACE := $(DATA)/vtiny_1trials_race_0.2alpha_2min_1round_250max_l1_64
TINY := python eval_prob_adaptive.py --version tiny --dataset fashion_mnist --loss l1

.PHONY: figures
figures:
	$(TINY) --to_keep 1 --n_samples 250
	$(TINY) --strategy race
	$(TINY) --strategy race --split validation --extra validation
	python scripts/replay.py $(GRID) --out docs/replay_tiny_sd.png
	python scripts/calibrate.py $(RACE) --fitted_on $(VALID) --out docs/reliability.png
	python scripts/plot_timesteps.py $(GRID) -o docs
	python scripts/plot_method.py -o docs/method.png
	python scripts/plot_inversion.py --version tiny --dataset fashion_mnist --image 29 --caption "a photo of a dress." \
		--under "a photo of a coat." "a red dress" "a photo of a boot." -o docs/inversion.png
	python scripts/report.py $(RACE) $(GRID) -o docs
	$(BROWSER) --headless --no-sandbox --hide-scrollbars --window-size=1000,1085 --screenshot=docs/report.png file://$(CURDIR)/docs/report.html
	rm docs/report.html docs/timesteps.csv docs/strategies.csv docs/inversion.csv docs/timesteps.png
