# Needs cargo, a C++ compiler and make; the real model of the demo and some tests also need python3 and, for the
# comparison with llama.cpp, node. See tools/ for the scripts behind each target.
.DEFAULT_GOAL := help
.PHONY: help demo test test-aarch64 test-vulkan fmt lint models oracle bench bindings clean

help: ## Print this list
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

demo: ## Build, quantize two checkpoints and ask them something
	@bash tools/demo.sh

test: ## Run every check, as CI does
	@bash tools/check.sh

test-aarch64: ## Build for 64-bit Arm and compare under qemu (on Debian; slow, so not part of test)
	@bash tools/check-aarch64.sh

test-vulkan: ## Build with Vulkan and test on a Vulkan driver for CPUs (fetches it from Debian; slow, so not part of test)
	@bash tools/check-vulkan.sh

fmt: ## Format the sources
	cargo fmt --all

lint: ## Look for what the compiler and clippy dislike
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings

models: ## Make the test models in .cache/test-models (1.7 GB)
	@bash tools/test-models.sh

oracle: ## Install a prebuilt llama.cpp in .cache/oracle
	@bash tools/oracle.sh

bench: ## Measure beside llama.cpp: make bench ARGS="--llama BIN_DIR --checkpoint DIR"
	cargo build --release --bins
	python3 benches/against-llama-cpp.py $(ARGS)

bindings: ## Write ggml's bindings anew and show what changes (needs libclang)
	@bash tools/check-bindings.sh

clean: ## Remove what was built and fetched
	cargo clean
	rm -rf .cache
