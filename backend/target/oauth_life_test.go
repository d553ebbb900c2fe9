// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package target_test

import (
	"testing"
	"time"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/target"
)

// A token that is not active is not renewed, whatever end the answer gives it.
func TestOAuthInactiveIsNotRenewed(t *testing.T) {
	t.Parallel()
	s := scripted(t, map[string][]line{"POST /i": {{status: 200, body: `{"active":false,"exp":4000000000}`}}})
	opened := s.open(t, "", target.Config{Driver: "oauth", OAuth: target.OAuth{TokenURL: s.url + "/t", IntrospectionURL: s.url + "/i"}})
	_, err := opened.Renew(t.Context(), target.Handle{Secret: "x"}, scriptTime.Add(time.Hour))
	wantError(t, "inactive", err, target.ErrDenied, "renew: denied by the target: the token is no longer active")
}
