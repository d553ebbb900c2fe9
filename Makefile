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

# The path of a real Vault: from PATH, else built once into the cache folder.
vault:
	@./scripts/vault.sh

# The main job on a real Vault, step by step.
demo: dev
	@./scripts/demo.sh

# Servers that others wrote, built or installed once per machine for the acceptance tests; REAL=1 has them all.
REAL        ?=
SERVERS     := pocketbase $(if $(filter 1,$(REAL)),verdaccio unleash spire gitea)

# All tests: unit, conformance, our verifier against those of others, and acceptance against a real Vault and PocketBase; with
# REAL=1 also against SPIRE, Gitea, Unleash and Verdaccio, whose builds take about 45 CPU minutes, once.
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

# Without Vault: for the inner loop.
unit: need-cc
	VAULT_BIN= CGO_ENABLED=1 go test -race $(TESTARGS) ./...

# The fault matrix: every step in the life of a key, at every kind of target, under every fault. From its own folder go shows the table as it is.
faults: need-go
	cd backend && FAULTS=all go test -run '^TestFaultMatrix$$' -count=1 -parallel 8 -timeout 1h $(TESTARGS)

# Outages at their real length: Agent while its target or Vault is away for a minute, and a target that is down for a quarter of
# an hour, so that Vault and the ledger come to the end of their schedules.
outage: need-go
	vault=$$(./scripts/vault.sh) && VAULT_BIN="$$vault" OUTAGE=15m go test -run '^TestAcceptance$$/^in_one_Vault$$/^(Outage|AgentOutage)$$' -count=1 -v -timeout 1h $(TESTARGS) ./cmd/$(PLUGIN_NAME)

# Three Vaults under load, in which something fails all the time, for DURATION. What SEED chose is printed.
DURATION    ?= 1h
SEED        ?=
soak: need-cc
	vault=$$(./scripts/vault.sh) && cd cmd/$(PLUGIN_NAME) && VAULT_BIN="$$vault" SOAK="$(DURATION)" SEED="$(SEED)" CGO_ENABLED=1 go test -race -run '^TestSoak$$' -count=1 -timeout 0 $(TESTARGS)

# Each fuzz function for FUZZTIME.
fuzz: need-go
	@./scripts/fuzz.sh $(FUZZTIME)

# The plugin in a real Vault beside what its users would do otherwise: a quarter of an hour on two cores, BENCH_QUICK=1 two minutes.
bench: need-go
	@./scripts/bench.sh

# The parts in process, and how they grow: verify, decide, issue, the ledger.
growth: need-go
	go test -run '^$$' -bench . -benchmem -timeout 1h $(TESTARGS) ./...

# scripts/vault is not vetted: that would compile all of Vault to look at one call.
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

# The plugin into the Vault of VAULT_ADDR and VAULT_TOKEN: make configure PLUGIN_DIR=/etc/vault/plugins
configure: dev
	@./bootstrap/configure.sh "$(PLUGIN_DIR)" "$(PLUGIN_NAME)" "$(PLUGIN_PATH)"

# The files of a release, built twice and compared, in bin/release: make release VERSION=v1.2.3 [PLATFORMS=linux/amd64]
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
