// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

// An authorization server of oidc-provider's with a token exchange grant. It prints its issuer once it listens.
// Environment: SECRET of client vault, JWK (public) of client robots, and ISSUER, whose tokens it exchanges.
import { createServer } from "node:http";
import { createRemoteJWKSet, exportJWK, generateKeyPair, jwtVerify } from "jose";
import Provider, { errors } from "oidc-provider";

const exchange = "urn:ietf:params:oauth:grant-type:token-exchange";
const accessToken = "urn:ietf:params:oauth:token-type:access_token";
const idToken = "urn:ietf:params:oauth:token-type:id_token";
const { SECRET, JWK, ISSUER } = process.env;

const server = createServer();
await new Promise((done) => server.listen(0, "127.0.0.1", done));
const issuer = `http://127.0.0.1:${server.address().port}`;

const { privateKey } = await generateKeyPair("ES256", { extractable: true });
const common = { redirect_uris: [], response_types: [], grant_types: [exchange, "client_credentials"] };
const provider = new Provider(issuer, {
  jwks: { keys: [{ ...(await exportJWK(privateKey)), alg: "ES256", use: "sig" }] },
  clientAuthMethods: ["client_secret_basic", "private_key_jwt"],
  enabledJWA: { clientAuthSigningAlgValues: ["ES256"], idTokenSigningAlgValues: ["ES256"] },
  clientDefaults: { id_token_signed_response_alg: "ES256" },
  clients: [
    { ...common, client_id: "the vault", client_secret: SECRET, token_endpoint_auth_method: "client_secret_basic" },
    { ...common, client_id: "robots", jwks: { keys: [JSON.parse(JWK)] }, token_endpoint_auth_method: "private_key_jwt", token_endpoint_auth_signing_alg: "ES256" },
  ],
  features: { clientCredentials: { enabled: true }, introspection: { enabled: true }, revocation: { enabled: true }, devInteractions: { enabled: false } },
  scopes: ["api:read"],
  ttl: { ClientCredentials: 300 },
});

const discovered = await (await fetch(`${ISSUER}/.well-known/openid-configuration`)).json();
const keys = createRemoteJWKSet(new URL(discovered.jwks_uri));
provider.registerGrantType(
  exchange,
  async (ctx) => {
    const { client, params } = ctx.oidc;
    try {
      if (params.subject_token_type !== idToken || params.requested_token_type !== accessToken) throw new Error("types");
      await jwtVerify(params.subject_token, keys, { issuer: ISSUER, audience: issuer });
    } catch {
      throw new errors.InvalidGrant(`no such subject token: ${params.subject_token}`); // a server that says too much
    }
    const token = new provider.ClientCredentials({ client, scope: params.scope });
    ctx.body = { access_token: await token.save(), expires_in: token.expiration, token_type: token.tokenType, issued_token_type: accessToken, scope: token.scope };
  },
  ["subject_token", "subject_token_type", "requested_token_type", "scope"],
);
server.on("request", provider.callback());
console.log(issuer);
