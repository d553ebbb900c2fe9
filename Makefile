PLUGIN_NAME := vault-plugin-secrets-oidcexchange
PLUGIN_DIR  ?=
PLUGIN_PATH ?= oidcexchange
VERSION     ?= v0.1.0-dev
FUZZTIME    ?= 30s
TESTARGS    ?=

PACKAGE     := github.com/oidcexchange/$(PLUGIN_NAME)
STATICCHECK := go tool -modfile=scripts/tools/go.mod staticcheck

.PHONY: default dev vault demo test unit faults outage soak fuzz bench growth lint fmt cover reference run configure release clean need-go need-cc

default: dev

# The plugin, in bin/.
dev: need-go
	CGO_ENABLED=0 go build -trimpath -ldflags "-X $(PACKAGE)/backend.Version=$(VERSION)" -o bin/$(PLUGIN_NAME) ./cmd/$(PLUGIN_NAME)

# The path of a real Vault: the one on PATH, else one built once into the cache folder.
vault:
	@./scripts/vault.sh

# The main job on a real Vault, step by step.
demo: dev
	@./scripts/demo.sh

# Other projects' servers, built or installed once per machine for the acceptance tests; REAL=1 gets all of them.
REAL        ?=
SERVERS     := pocketbase $(if $(filter 1,$(REAL)),verdaccio unleash spire gitea)

# All tests: unit, conformance, our verifier compared with others, and acceptance with a real Vault and PocketBase; with
# REAL=1 also with SPIRE, Gitea, Unleash and Verdaccio, whose builds take about 45 CPU minutes, once.
test: need-cc
	@command -v promtool >/dev/null || echo "NOT RUN: promtool is missing, so nothing looks at the alert rules and the metrics; install Prometheus (Debian: apt-get install prometheus)" >&2
	@for tool in node npm; do command -v $$tool >/dev/null || echo "NOT RUN: $$tool is missing, so no JavaScript verifier looks at the tokens of self; install Node.js 20 or newer" >&2; done
	@[ "$(REAL)" = 1 ] || echo "NOT RUN: SPIRE, Gitea, Unleash and Verdaccio are not tried; make test REAL=1 builds and tries them" >&2
	@echo "NOT RUN: no outage lasts longer than some seconds; make outage has some of a minute and one of a quarter of an hour, in half an hour" >&2
	@echo "NOT RUN: the fault matrix on all targets, and the soak; see make faults and make soak" >&2
	cd scripts/differential && go test -count=1 ./...
	cd scripts/bench && go test -count=1 ./...
	@for server in $(SERVERS); do ./scripts/real.sh $$server >/dev/null || true; done # what fails here the tests report
	vault=$$(./scripts/vault.sh) && VAULT_BIN="$$vault" REAL="$(REAL)" CGO_ENABLED=1 go test -race -shuffle=on -count=1 -timeout 40m $(TESTARGS) ./...

# Tests that need no Vault: for the inner loop.
unit: need-cc
	VAULT_BIN= CGO_ENABLED=1 go test -race $(TESTARGS) ./...

# The fault matrix: every step in the life of a key, at every kind of target, under every fault. It runs in its own folder,
# so that go prints the table as it is.
faults: need-go
	cd backend && FAULTS=all go test -run '^TestFaultMatrix$$' -count=1 -parallel 8 -timeout 1h $(TESTARGS)

# Outages of realistic length: Agent while its target or Vault is away for a minute, and a target that is down for a quarter
# of an hour, so that Vault and the ledger reach the end of their schedules.
outage: need-go
	vault=$$(./scripts/vault.sh) && VAULT_BIN="$$vault" OUTAGE=15m go test -run '^TestAcceptance$$/^in_one_Vault$$/^(Outage|AgentOutage)$$' -count=1 -v -timeout 1h $(TESTARGS) ./cmd/$(PLUGIN_NAME)

# Three Vaults under load and constant failures, for DURATION. The SEED that made the choices is printed.
DURATION    ?= 1h
SEED        ?=
soak: need-cc
	vault=$$(./scripts/vault.sh) && cd cmd/$(PLUGIN_NAME) && VAULT_BIN="$$vault" SOAK="$(DURATION)" SEED="$(SEED)" CGO_ENABLED=1 go test -race -run '^TestSoak$$' -count=1 -timeout 0 $(TESTARGS)

# Runs each fuzz function for FUZZTIME.
fuzz: need-go
	@./scripts/fuzz.sh $(FUZZTIME)

# Measures the plugin in a real Vault and compares it with what its users would do without it: a quarter of an hour on two
# cores, two minutes with BENCH_QUICK=1.
bench: need-go
	@./scripts/bench.sh

# Measures the parts in process, and how they grow: verify, decide, issue, the ledger.
growth: need-go
	go test -run '^$$' -bench . -benchmem -timeout 1h $(TESTARGS) ./...

# scripts/vault is not vetted: that would compile all of Vault to check one call.
lint: need-go
	@unformatted=$$(gofmt -l .); [ -z "$$unformatted" ] || { echo "not formatted, run make fmt:"; echo "$$unformatted"; exit 1; }
	go vet ./...
	go vet -tags faults ./backend
	$(STATICCHECK) ./...
	$(STATICCHECK) -tags faults ./backend
	cd scripts/differential && go vet ./... && go tool -modfile=../tools/go.mod staticcheck ./...
	cd scripts/bench && go vet ./... && go tool -modfile=../tools/go.mod staticcheck ./...

fmt: need-go
	gofmt -l -w .

# Coverage of each package by its own tests.
cover: need-go
	go test -count=1 -cover $(TESTARGS) ./...

# The README's reference, from the path schemas and the table of reasons.
reference: need-go
	go test ./backend -run TestReference -update

# A dev Vault with the plugin mounted, until interrupted.
run: dev
	@./scripts/run.sh $(PLUGIN_NAME) $(PLUGIN_PATH)

# Installs the plugin in the Vault of VAULT_ADDR and VAULT_TOKEN: make configure PLUGIN_DIR=/etc/vault/plugins
configure: dev
	@./bootstrap/configure.sh "$(PLUGIN_DIR)" "$(PLUGIN_NAME)" "$(PLUGIN_PATH)"

# Builds the files of a release twice and compares them, in bin/release: make release VERSION=v1.2.3 [PLATFORMS=linux/amd64]
PLATFORMS   ?=
release: need-go
	@./scripts/release.sh $(VERSION) $(PLATFORMS)

clean:
	rm -rf bin

need-go:
	@command -v go >/dev/null || { echo "go is missing: install it from https://go.dev/dl" >&2; exit 1; }
	@go list -m >/dev/null || { echo "this go cannot build the module, see above: install a newer one from https://go.dev/dl" >&2; exit 1; }

need-cc: need-go
	@cc=$$(go env CC); command -v "$${cc%% *}" >/dev/null || { echo "the race detector needs a C compiler, and $$cc is missing: install it (Debian: apt-get install gcc libc6-dev)" >&2; exit 1; }
