// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package main

import (
	"flag"
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
)

// pluginName is the plugin's name in the catalog, for tests that do not harm its process.
const pluginName = "oidcexchange"

// acceptance lists the tests that share one Vault; each has a mount of its own. The longest come first.
var acceptance = []struct {
	name string
	test func(*testing.T, *server)
}{
	{"Outage", testOutage},
	{"LeftToVault", testLeftToVault},
	{"Rotation", testRotation},
	{"HighAvailability", testHighAvailability},
	{"Versions", testVersions},
	{"Reloads", testReloads},
	{"RevocationGoesOn", testRevocationGoesOn},
	{"Restarts", testRestarts},
	{"AgentOutage", testAgentOutage},
	{"Install", testInstall},
	{"Self", testSelf},
	{"Agent", testAgent},
	{"AgentMistake", testAgentMistake},
	{"CrashWhileIssuing", testCrashWhileIssuing},
	{"CrashWhileRevoking", testCrashWhileRevoking},
	{"CrashOfLostKeys", testCrashOfLostKeys},
	{"CrashWhileRotating", testCrashWhileRotating},
	{"KilledDuringCall", testKilledDuringCall},
	{"TargetFaults", testTargetFaults},
	{"ClientRepeats", testClientRepeats},
	{"CallerLeaves", testCallerLeaves},
	{"Debt", testDebt},
	{"ForceWhileDown", testForceWhileDown},
	{"DisableWhileDown", testDisableWhileDown},
	{"DisableByForce", testDisableByForce},
	{"DisableWithUnknownOutcome", testDisableWithUnknownOutcome},
	{"KeyByLogin", testKeyByLogin},
	{"KeyByToken", testKeyByToken},
	{"RenewalExtendsKey", testRenewalExtendsKey},
	{"Runbook", testRunbook},
	{"Restore", testRestore},
	{"RevokeScriptOfExposedKeys", testRevokeScriptOfExposedKeys},
	{"RevokePrefix", testRevokePrefix},
	{"EndOfLogin", testEndOfLogin},
	{"Ledger", testLedger},
	{"Refusals", testRefusals},
	{"Explain", testExplain},
	{"Check", testCheck},
	{"Metrics", testMetrics},
	{"AuditTune", testAuditTune},
	{"NuGet", testNuGet},
	{"Examples", testExamples},
	{"GitHubActions", testGitHubActions},
	{"GitLabCI", testGitLabCI},
	{"AgentConnect", testAgentConnect},
	{"Kubernetes", testKubernetes},
	{"Terraform", testTerraform},
	{"Connect", testConnect},
	{"GitProxy", testGitProxy},
	{"GitLab", testGitLab},
	{"GitLabSelf", testGitLabSelf},
	{"SPIFFE", testSPIFFE},
	{"OwnTokenFromFile", testOwnTokenFromFile},
	{"OwnTokenFromEndpoint", testOwnTokenFromEndpoint},
	{"OAuthHops", testOAuthHops},
	{"OAuthProvider", testOAuthProvider},
	{"VaultIssuer", testVaultIssuer},
	{"VaultToken", testVaultToken},
	{"PocketBase", testPocketBase},
	{"Verdaccio", testVerdaccio},
	{"Unleash", testUnleash},
	{"SPIRE", testSPIRE},
	{"Gitea", testGitea},
	{"Concurrency", testConcurrency},
	{"WrongTypes", testWrongTypes},
	{"OddValues", testOddValues},
	{"Null", testNull},
	{"Queries", testQueries},
	{"Names", testNames},
	{"Verbs", testVerbs},
	{"Records", testRecords},
	{"Documented", testDocumented},
	{"StartingPoints", testStartingPoints},
}

// TestMain lets more tests run at once than there are processors, because most of their time they wait for Vault.
func TestMain(m *testing.M) {
	flag.Parse()
	if err := flag.Set("test.parallel", fmt.Sprint(max(6, runtime.GOMAXPROCS(0)))); err != nil {
		panic(err) // the flag is testing's
	}
	os.Exit(m.Run())
}

// TestAcceptance runs the plugin in a real Vault, against stand-ins for the other servers.
func TestAcceptance(t *testing.T) {
	bin := os.Getenv("VAULT_BIN")
	if bin == "" {
		t.Skip("VAULT_BIN is not set, so nothing was tested in a real Vault; `make test` finds or builds one and sets it")
	}
	ownEnvironment(t)
	s := startServer(t, bin, binaries{plain: buildPlugin(t, "", pluginVersion), faults: buildPlugin(t, "faults", pluginVersion)})
	t.Run("in one Vault", func(t *testing.T) {
		for _, each := range acceptance {
			t.Run(each.name, func(t *testing.T) {
				t.Parallel()
				each.test(t, s)
			})
		}
	})
	s.wantClean(t)
}

// ownEnvironment hides the developer's own Vault and SPIFFE agent from the tests.
func ownEnvironment(t *testing.T) {
	for _, variable := range os.Environ() {
		if name, _, _ := strings.Cut(variable, "="); strings.HasPrefix(name, "VAULT_") && name != "VAULT_BIN" || name == "SPIFFE_ENDPOINT_SOCKET" {
			t.Setenv(name, "")
		}
	}
}
