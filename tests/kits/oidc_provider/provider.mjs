// An OpenID provider for tests: npm oidc-provider on a free port of 127.0.0.1. __init__.py starts it, and says what `options` has.
// It prints its issuer as one line of JSON when it listens, and ends when its standard input is closed.
import { generateKeyPairSync, randomBytes } from 'node:crypto';
import { createServer } from 'node:http';
import { createRequire } from 'node:module';
import { pathToFileURL } from 'node:url';

const [folder, text] = process.argv.slice(2);
const options = JSON.parse(text);
const { Provider } = await import(pathToFileURL(createRequire(`${folder}/none.js`).resolve('oidc-provider')));

const key = (type, more, members) =>
  ({ ...generateKeyPairSync(type, more).privateKey.export({ format: 'jwk' }), use: 'sig', ...members });
const keys = [
  key('rsa', { modulusLength: 2048 }, { alg: 'RS256', kid: 'rsa' }),
  key('ec', { namedCurve: 'P-256' }, { alg: 'ES256', kid: 'ec' }),
];

const server = createServer();
await new Promise((listening) => server.listen(options.port, '127.0.0.1', listening));
const issuer = `http://127.0.0.1:${server.address().port}`;
const words = (given) => (given ?? '').split(' ').filter(Boolean).join(' ');

const provider = new Provider(issuer, {
  jwks: { keys },
  clients: options.clients,
  cookies: { keys: ['a key for cookies of tests'] },
  scopes: ['openid', 'offline_access'],
  claims: { openid: ['sub'] },
  // Its dispatcher refuses addresses of this machine, where the clients of tests are.
  fetch: (url, { dispatcher, ...given }) => fetch(url, given),
  pkce: { required: () => true },
  ttl: { AccessToken: options.seconds, ClientCredentials: options.seconds, Session: 3600, Grant: 3600, Interaction: 600, IdToken: 3600 },
  findAccount: (_, id) => ({ accountId: id, claims: () => ({ sub: id }) }),
  // Access tokens name the session, as those of Keycloak and Entra do, so that a logout token's sid can mean something.
  extraTokenClaims: (ctx, token) => {
    const sid = ctx.oidc.entities.AuthorizationCode?.sid ?? ctx.oidc.entities.RefreshToken?.sid;
    return { ...options.claims, ...(token.kind === 'AccessToken' && sid ? { sid } : {}) };
  },
  interactions: { url: (_, interaction) => `/interaction/${interaction.uid}` },
  // Every scope that is asked for is granted without a page.
  loadExistingGrant: async (ctx) => {
    const { client, session, params, resourceServers } = ctx.oidc;
    const kept = session.grantIdFor(client.clientId);
    const grant = (kept && (await provider.Grant.find(kept))) || new provider.Grant({ clientId: client.clientId, accountId: session.accountId });
    grant.addOIDCScope(words(params.scope));
    for (const resource of Object.keys(resourceServers ?? {})) grant.addResourceScope(resource, words(params.scope));
    await grant.save();
    return grant;
  },
  features: {
    devInteractions: { enabled: false },
    clientCredentials: { enabled: true },
    introspection: { enabled: true, allowedPolicy: () => true },
    revocation: { enabled: true },
    backchannelLogout: { enabled: true },
    rpInitiatedLogout: { enabled: true, logoutSource: (ctx, form) => { ctx.body = form; } },
    dPoP: { enabled: true, nonceSecret: randomBytes(32), requireNonce: () => options.dpop_nonces },
    registration: { enabled: true },
    registrationManagement: { enabled: true },
    resourceIndicators: {
      enabled: true,
      defaultResource: () => options.resource,
      useGrantedResource: () => true,
      getResourceServerInfo: (_, resource, client) => ({
        scope: options.scopes.join(' '),
        audience: resource,
        accessTokenTTL: options.seconds,
        accessTokenFormat: options.opaque.includes(client.clientId) || options.opaque.includes(resource) ? 'opaque' : 'jwt',
        jwt: { sign: { alg: options.algorithm } },
      }),
    },
  },
});

provider.on('server_error', (_, error) => console.error(error));
provider.on('backchannel.error', (_, error) => console.error(error));

// The login page of a test: `login_hint` says who signs in. Without one nobody does.
const signIn = async (request, response) => {
  const { params } = await provider.interactionDetails(request, response);
  const result = params.login_hint
    ? { login: { accountId: params.login_hint }, consent: {} } // consent: a client may ask for it (prompt=consent)
    : { error: 'access_denied', error_description: 'no login_hint' };
  await provider.interactionFinished(request, response, result, { mergeWithLastSubmission: false });
};

const callback = provider.callback();
server.on('request', (request, response) => {
  if (!request.url.startsWith('/interaction/')) return callback(request, response);
  signIn(request, response).catch((error) => { console.error(error); response.writeHead(500).end(); });
});
process.stdin.on('end', () => process.exit(0)).resume();
console.log(JSON.stringify({ issuer }));
