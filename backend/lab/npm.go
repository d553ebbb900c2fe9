// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package lab

import (
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// NPM is a stand-in for the trusted publishing of an npm registry:
//
//	POST /-/npm/v1/oidc/token/exchange/package/{package}   with the token as bearer -> 201 {"token_type","token","created","expires"}
//	PUT  /{package}                                        with the key as bearer -> 200 while it lives and is for the package
//
// and those of every registry; the slash of a scoped package is escaped. Times are seconds since 1970, or RFC 3339 with
// TimesAsText. A key lives 15 minutes, and nobody can end it earlier. Whether a token works only once is not known; here it
// does, because a client must not rely on exchanging it again. Make one with NewNPM.
type NPM struct {
	registry
	timesAsText atomic.Bool
}

const npmKeyTTL = 15 * time.Minute

// NewNPM makes an NPM without publishers. The default audience is that of registry.npmjs.org.
func NewNPM(o RegistryOptions) *NPM {
	n := &NPM{}
	n.init(o, "npm:registry.npmjs.org", OpToken, OpPush)
	n.mux.HandleFunc("POST /-/npm/v1/oidc/token/exchange/package/{package}", n.handle(OpToken, n.exchange))
	n.mux.HandleFunc("PUT /{package}", n.handle(OpPush, n.publish))
	return n
}

// TimesAsText makes the times in answers RFC 3339 text.
func (n *NPM) TimesAsText(text bool) { n.timesAsText.Store(text) }

func npmRefusal(w http.ResponseWriter, status int, text string) {
	writeJSON(w, status, map[string]string{"message": text})
}

func (n *NPM) exchange(w http.ResponseWriter, r *http.Request) {
	token, found := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !found {
		npmRefusal(w, http.StatusUnauthorized, "OIDC token exchange error - no token")
		return
	}
	claims, fault := n.verify(r.Context(), token, []jose.SignatureAlgorithm{jose.RS256, jose.ES256}, 0, "iat")
	if fault != tokenGood {
		npmRefusal(w, http.StatusUnauthorized, "OIDC token exchange error - invalid token")
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, i := range n.matching(claims, "workflow_ref") {
		if name := n.publishers[i].Package; name == r.PathValue("package") && n.spend(claims, time.Minute) {
			n.answer(w, name)
			return
		}
	}
	npmRefusal(w, http.StatusNotFound, "OIDC token exchange error - package not found")
}

// answer makes a key and answers with it. The caller holds mu.
func (n *NPM) answer(w http.ResponseWriter, name string) {
	key := randomHex(160)
	expires := n.add(key, npmKeyTTL, name)
	form := func(at time.Time) any { return at.Unix() }
	if n.timesAsText.Load() {
		form = func(at time.Time) any { return at.Format(time.RFC3339) }
	}
	writeJSON(w, http.StatusCreated, map[string]any{
		"token_type": "oidc", "token": key, "created": form(expires.Add(-npmKeyTTL)), "expires": form(expires),
	})
}

func (n *NPM) publish(w http.ResponseWriter, r *http.Request) {
	key, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	n.mu.Lock()
	defer n.mu.Unlock()
	k, ok := n.keys[key]
	switch {
	case !ok || !k.ExpiresAt.After(n.now()):
		npmRefusal(w, http.StatusUnauthorized, "unauthorized")
	case k.Packages[0] != r.PathValue("package"):
		npmRefusal(w, http.StatusForbidden, "You do not have permission to publish this package")
	default:
		writeJSON(w, http.StatusOK, map[string]bool{"success": true})
	}
}
